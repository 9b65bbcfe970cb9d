/**
 * What a network with rounded weights computes in training is what the packed network computes, with tolerance 0: in every number
 * format, over the merged weight and over the base, with one table for embeddings and head or two, with and without gradient checkpointing.
 */
import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { after, before } from 'node:test';
import { pack as packRows } from '../../src/data/index.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { writeSafetensors } from '../../src/io/index.ts';
import { attachMethods, type MethodChoice } from '../../src/methods/index.ts';
import { loadModel } from '../../src/models/index.ts';
import {
  type Embedding,
  kernelsOn,
  type Linear,
  type Model,
  moduleAt,
  outputOf,
  packTokens,
  unwrapped,
  useGradientCheckpointing,
  withRoundedInputs,
} from '../../src/nn/index.ts';
import {
  ggufFormats,
  integerFormats,
  isIntegerFormat,
  pack,
  type WeightFormat,
  weightFormats,
} from '../../src/quant/index.ts';
import { Generator, noGrad, ops, scope, type Tensor } from '../../src/tensor/index.ts';
import { batchLoss, type MicroBatch } from '../../src/train/index.ts';
import { numbers, relativeError, temporary } from '../support.ts';
import { perturb } from './cases.ts';

const folder = temporary();
before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
});
after(() => folder[Symbol.dispose]());

const width = 256; // one block of the K formats

/** Writes a Llama of one layer that every format fits, and returns its directory. */
function writeModel(tied: boolean): string {
  using _ = scope();
  using generator = new Generator(23);
  const dir = join(folder.path, tied ? 'tied' : 'untied');
  mkdirSync(dir);
  const config = {
    model_type: 'llama',
    vocab_size: 64,
    hidden_size: width,
    intermediate_size: width,
    num_hidden_layers: 1,
    num_attention_heads: 4,
    num_key_value_heads: 4,
    tie_word_embeddings: tied,
  };
  const at = 'model.layers.0';
  const linear = [
    ...['q', 'k', 'v', 'o'].map((name) => `self_attn.${name}_proj`),
    ...['gate', 'up', 'down'].map((name) => `mlp.${name}_proj`),
  ];
  const shapes: Record<string, number[]> = {
    'model.embed_tokens.weight': [64, width],
    'model.norm.weight': [width],
    ...(!tied && { 'lm_head.weight': [64, width] }),
    ...Object.fromEntries(linear.map((name) => [`${at}.${name}.weight`, [width, width]])),
    ...Object.fromEntries(['input', 'post_attention'].map((name) => [`${at}.${name}_layernorm.weight`, [width]])),
  };
  writeFileSync(join(dir, 'config.json'), JSON.stringify(config));
  writeSafetensors(
    join(dir, 'model.safetensors'),
    Object.entries(shapes).map(([name, shape]) => {
      const values = ops.mulScalar(ops.randn(shape, { generator }), shape.length > 1 ? 0.1 : 1);
      return { name, dtype: 'float32' as const, shape, bytes: () => values.bytes() };
    }),
  );
  return dir;
}

const ids = [17, 5].map((length, r) => Int32Array.from({ length }, (_, i) => (i * 29 + r * 11 + i * i) % 64));

function batchOf(): MicroBatch {
  return packRows(ids.map((row) => ({ ids: row, labels: row, place: 'test' })));
}

const outputs = (model: Model) => numbers(ops.contiguous(ops.detach(outputOf(model, packTokens(ids)))));

/** The outputs, and the loss with the gradient of every trained tensor. */
function inTraining(model: Model, parameters: ReadonlyMap<string, Tensor>) {
  using _ = scope();
  const output = outputs(model);
  const sum = batchLoss(model, batchOf());
  sum.backward();
  const gradients = new Map<string, Float32Array>();
  for (const [key, tensor] of parameters) {
    assert.ok(tensor.grad, key);
    gradients.set(key, numbers(ops.contiguous(tensor.grad)));
    tensor.grad = undefined;
  }
  return { output, loss: sum.item(), gradients };
}

const isOfGguf = (format: WeightFormat) => ggufFormats.some((name) => name === format);

/** How integers are grouped here: blocks have their own size, and GGUF's may have rounded inputs. */
const groupings = (format: WeightFormat): { readonly activation?: 'q8' }[] => {
  const integers = [{ group_size: 32 }, { group_size: 'channel' }, { group_size: 64, symmetric: false }];
  if (isIntegerFormat(format)) return integers as object[];
  return isOfGguf(format) ? [{}, { activation: 'q8' }] : [{}];
};

/** What is trained, and what is rounded: the sum, the base below the adapter, or trained weights. */
const ways = ['merged', 'base', 'full'] as const;

/** Outputs with inputs as they are. */
const outputsWithout = new Map<string, Float32Array>();

const counts = { cases: 0, packed: 0, replayed: 0 };
const dirs = new Map<boolean, string>();
for (const tied of [false, true]) {
  for (const format of weightFormats) {
    test(`${format}, embeddings and head ${tied ? 'share a table' : 'apart'}`, () => {
      const dir = dirs.get(tied) ?? writeModel(tied);
      dirs.set(tied, dir);
      for (const grouping of groupings(format))
        for (const way of ways) {
          // Over the base, the adapter's product has other last bits beside a layer with rounded inputs, and codes follow them.
          if (way !== 'base' || !grouping.activation) prove(dir, { tied, format, grouping, way });
        }
    });
  }
}

interface Case {
  readonly tied: boolean;
  readonly format: WeightFormat;
  readonly grouping: { readonly activation?: 'q8' };
  readonly way: (typeof ways)[number];
}

function prove(modelDir: string, { tied, format, grouping, way }: Case): void {
  using _ = scope();
  const what = `${format} ${JSON.stringify(grouping)} ${way}`;
  const trains: MethodChoice = way === 'full' ? { type: 'full' } : { type: 'lora', r: 4, target_modules: 'all-linear' };
  const tables = tied ? { embedding: format } : { embedding: format, head: format };
  const over = way === 'base' ? way : 'merged';
  using model = loadModel(modelDir);
  using adapter = attachMethods(model, [trains, { type: 'qat', weight: format, over, ...grouping, ...tables }], 1);
  perturb(adapter, 5);
  const { parameters } = adapter;
  const trained = inTraining(model, parameters);
  {
    using _checkpointing = useGradientCheckpointing(true);
    const replayed = inTraining(model, parameters);
    assert.deepEqual(replayed.output, trained.output, `${what}: checkpointing`);
    assert.equal(replayed.loss, trained.loss, `${what}: loss under checkpointing`);
    assert.deepEqual(replayed.gradients, trained.gradients, `${what}: gradients under checkpointing`);
    counts.replayed++;
  }

  // The same network, its layers packed as a file holds them.
  const kernels = kernelsOn('cpu', 'float32');
  using packed = loadModel(modelDir, { kernels: grouping.activation ? withRoundedInputs(kernels) : kernels });
  using plain = attachMethods(packed, [trains], 1);
  perturb(plain, 5);
  if (way === 'merged') plain.merge!();
  const layers = new Map<string, Linear | Embedding>();
  for (const path of adapter.roundings!.keys())
    layers.set(path, unwrapped(moduleAt(packed.root, path)) as Linear | Embedding);
  assert.equal(layers.size, 9);
  noGrad(() => {
    const done = new Map<unknown, { weight: Linear['weight']; format: number }>();
    for (const [path, layer] of layers) {
      const before = layer.weight;
      if (!done.has(before)) done.set(before, pack(before, adapter.roundings!.get(path)!.quantization));
      Object.assign(layer, done.get(before));
      counts.packed++;
    }
    assert.equal(done.size, tied ? 8 : 9, what);
  });
  const output = noGrad(() => {
    using _s = scope();
    return outputs(packed);
  });
  assert.deepEqual(output, trained.output, `${what}: packed`);
  if (grouping.activation) checkChanged(trained.output, outputsWithout.get(`${tied} ${format} ${way}`)!, what);
  else outputsWithout.set(`${tied} ${format} ${way}`, output);
  const loss = noGrad(() => {
    using _s = scope();
    return batchLoss(packed, batchOf()).item();
  });
  assert.equal(loss, trained.loss, `${what}: loss of the packed network`);
  counts.cases++;
}

/** Checks that rounded inputs change the outputs, and by no more than 8 bits do. */
function checkChanged(got: Float32Array, without: Float32Array, what: string): void {
  const error = relativeError(got, without);
  assert.ok(error > 1e-4 && error < 0.1, `${what}: rounded inputs change the outputs by ${error}`);
}

test('so much was compared', (t) => {
  t.diagnostic(JSON.stringify(counts));
  const integers = Object.keys(integerFormats).length;
  const blocks = weightFormats.length - integers;
  assert.equal(integers, 7);
  assert.equal(blocks, 9);
  assert.equal(counts.cases, 2 * (ways.length * (3 * integers + blocks) + 2 * (blocks - 1)));
});
