/** The learning rate of each parameter, as one step of plain gradient descent takes it. */
import assert from 'node:assert/strict';
import test, { before } from 'node:test';
import { golden, numbers } from '../../test/support.ts';
import { GraftError } from '../base/index.ts';
import { startEngine } from '../engine/index.ts';
import { attachMethods, type MethodChoice } from '../methods/index.ts';
import { loadModel } from '../models/index.ts';
import { ops, scope } from '../tensor/index.ts';
import { optimizerFor } from './attach.ts';
import { learningRates } from './learning-rates.ts';
import { parseRecipe } from './recipe.ts';

before(() => startEngine());

const lr = 0.5;

/** Attaches methods and returns what a step moves each parameter by, divided by its gradient and by the recipe's learning rate. */
function factors(path: readonly string[], method: MethodChoice | MethodChoice[], fields: object) {
  using _ = scope();
  using host = loadModel(golden(...path));
  using adapter = attachMethods(host, [method].flat(), 0);
  const { parameters } = adapter;
  const train = { lr, optimizer: { type: 'sgd', momentum: 0 }, ...fields };
  const recipe = parseRecipe({ model: 'm', method, data: 'rows.jsonl', run: { dir: 'out' }, train });
  using optimizer = optimizerFor({ host, adapter, parameters }, recipe);
  const before = new Map([...parameters].map(([key, tensor]) => [key, numbers(ops.clone(tensor))[0]!]));
  for (const tensor of parameters.values()) tensor.grad = ops.ones(tensor.shape);
  optimizer.step(lr);
  const moved = [...parameters].map(([key, tensor]) => {
    const factor = (before.get(key)! - numbers(tensor)[0]!) / lr;
    tensor.grad = undefined;
    return [key, Number(factor.toPrecision(4))] as const;
  });
  return { moved, warnings: learningRates({ host, adapter, parameters }, recipe.train).warnings };
}

/** Checks the factor of every parameter by the first pattern that its key matches, and that each pattern matches some. */
function check(moved: readonly (readonly [string, number])[], wanted: readonly (readonly [RegExp, number])[]): void {
  const counts = wanted.map(() => 0);
  for (const [key, factor] of moved) {
    const i = wanted.findIndex(([pattern]) => pattern.test(key));
    assert.ok(i >= 0, key);
    assert.ok(Math.abs(factor - wanted[i]![1]) <= 2e-3 * wanted[i]![1], `${key}: ${factor}, not ${wanted[i]![1]}`);
    counts[i]!++;
  }
  assert.ok(
    counts.every((count) => count > 0),
    `${counts}`,
  );
}

const lora: MethodChoice = { type: 'lora', target_modules: 'all-linear', r: 2, init_lora_weights: false };

test('full fine-tuning: layers from the top, embeddings lowest, the head by itself', () => {
  const distilbert = ['families', 'distilbert-seqcls'];
  const fields = { head_lr: 1, layer_lr_decay: 0.5 };
  check(factors(distilbert, { type: 'full' }, fields).moved, [
    [/^distilbert\.embeddings\./, 0.25],
    [/\.layer\.0\./, 0.5],
    [/\.layer\.1\./, 1],
    [/^(pre_)?classifier\./, 2],
  ]);
  // The last norm comes after the layers; a tied table learns as embeddings.
  check(factors(['models', 'qwen2'], { type: 'full' }, { layer_lr_decay: 0.1 }).moved, [
    [/^model\.embed_tokens\./, 0.01],
    [/\.layers\.0\./, 0.1],
    [/\.layers\.1\.|^model\.norm\./, 1],
  ]);
  check(factors(['models', 'llama2'], { type: 'full' }, { head_lr: 0.05 }).moved, [
    [/^lm_head\./, 0.1],
    [/./, 1],
  ]);
});

test('adapters in layers, and what a method asks for is relative to its layer', () => {
  const fields = { head_lr: 1, layer_lr_decay: 0.5 };
  check(factors(['families', 'bert-tokcls'], { ...lora, loraplus_lr_ratio: 4 }, fields).moved, [
    [/^classifier\./, 2],
    [/\.layer\.0\..*lora_A/, 0.5],
    [/\.layer\.1\..*lora_A/, 1],
    [/\.layer\.0\..*lora_B/, 2],
    [/\.layer\.1\..*lora_B/, 4],
  ]);
  check(factors(['families', 'bert-tokcls'], { type: 'bottleneck' }, fields).moved, [
    [/^classifier\./, 2],
    [/layers\.0\./, 0.5],
    [/layers\.1\./, 1],
  ]);
  const both = factors(
    ['models', 'qwen2'],
    [lora, { type: 'prompt', num_virtual_tokens: 2, prompt_tuning_init: 'RANDOM' }],
    { layer_lr_decay: 0.5 },
  );
  check(both.moved, [
    [/layers\.0\./, 0.5],
    [/layers\.1\.|prompt/, 1],
  ]);
  assert.deepEqual(both.warnings, [
    'train.layer_lr_decay: 1.prompt_embeddings belong to no layer, and learn with train.lr',
  ]);
});

test('fields that concern nothing that is trained, or are out of range, are refused', () => {
  const cases: readonly [readonly string[], MethodChoice, object, RegExp][] = [
    [
      ['models', 'qwen2'],
      { type: 'full' },
      { head_lr: 1 },
      /train\.head_lr: no head is trained: full for causal-lm trains none/,
    ],
    [['models', 'llama2'], lora, { head_lr: 1 }, /no head is trained: lora/],
    [
      ['models', 'qwen2'],
      { type: 'prompt', num_virtual_tokens: 2, prompt_tuning_init: 'RANDOM' },
      { layer_lr_decay: 0.9 },
      /train\.layer_lr_decay: no trained parameter belongs to a layer: prompt/,
    ],
    [['models', 'qwen2'], lora, { layer_lr_decay: 1.1 }, /train\.layer_lr_decay: must be 1 or less, but is 1\.1/],
    [['models', 'qwen2'], lora, { layer_lr_decay: 0 }, /train\.layer_lr_decay: must be above 0/],
    [['models', 'qwen2'], lora, { head_lr: 0 }, /train\.head_lr: must be above 0/],
    [
      ['models', 'qwen2'],
      lora,
      { optimizer: { type: 'galore', rank: 4 } },
      /rank 4 is larger than the smaller side of 28 of 28 matrices/,
    ],
  ];
  for (const [path, method, fields, message] of cases) {
    assert.throws(
      () => factors(path, method, fields),
      (error) => error instanceof GraftError && message.test(`${error.place}: ${error.message}`),
      String(message),
    );
  }
});
