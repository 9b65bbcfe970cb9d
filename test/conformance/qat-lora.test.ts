/**
 * Rounding over what the forms of LoRA change: embeddings, heads, single rows, biases, copies of modules, principal components. What is
 * computed with gradients is computed without; merged, and rounded as a file holds it, the network is the same.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { loadAdapter, saveAdapter } from '../../src/adapters/index.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { attachMethods } from '../../src/methods/index.ts';
import { loadModel } from '../../src/models/index.ts';
import {
  type Embedding,
  fakeQuantize,
  type Linear,
  moduleAt,
  outputOf,
  packTokens,
  unwrapped,
} from '../../src/nn/index.ts';
import { noGrad, ops, scope, type Tensor } from '../../src/tensor/index.ts';
import { golden, logitsOf, numbers, relativeError, temporary } from '../support.ts';
import { perturb } from './cases.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
});

type Fields = Readonly<Record<string, unknown>>;
interface Form {
  /** llama3 and qwen2 share one table between embeddings and head. */
  readonly model: 'llama3' | 'mistral' | 'qwen2';
  readonly lora: Fields;
  readonly qat?: Fields;
  /** Layers that are rounded, and those of them whose merged weight is. */
  readonly rounded: readonly [number, number];
  /** Why nothing is frozen, over the base. */
  readonly refused?: RegExp;
  /** What was saved is a sum of other products: its last bits, and so codes at ties, differ. */
  readonly savedAsOther?: true;
}

const all = { target_modules: 'all-linear' };
const some = ['q_proj'];
const tables = { embedding: 'int8', head: 'int8' };
const trained = /over: base rounds a frozen weight, and '\S+' is trained/;
const forms: Readonly<Record<string, Form>> = {
  'some layers': { model: 'mistral', lora: { target_modules: some }, rounded: [14, 2] },
  'embeddings and head': {
    model: 'mistral',
    lora: { target_modules: ['embed_tokens', 'lm_head'] },
    qat: tables,
    rounded: [16, 1],
  },
  'embeddings that share a table': {
    model: 'llama3',
    lora: { target_modules: ['embed_tokens'] },
    qat: tables,
    rounded: [23, 0],
  },
  'a head that shares a table': {
    model: 'llama3',
    lora: { target_modules: ['lm_head'] },
    qat: tables,
    rounded: [23, 1],
  },
  'rows of tokens': {
    model: 'mistral',
    lora: { target_modules: some, trainable_token_indices: [5, 9] },
    qat: tables,
    rounded: [16, 2],
  },
  'rows of a shared table': {
    model: 'llama3',
    lora: { target_modules: some, trainable_token_indices: [5, 9] },
    qat: tables,
    rounded: [23, 4],
  },
  'copies of embeddings and head': {
    model: 'mistral',
    lora: { target_modules: some, modules_to_save: ['embed_tokens', 'lm_head'] },
    qat: { embedding: 'int8', head: 'int4' },
    rounded: [16, 3],
    refused: trained,
  },
  'a copy of a head that shared a table': {
    model: 'llama3',
    lora: { target_modules: some, modules_to_save: ['lm_head'] },
    qat: { embedding: 'int4', head: 'int8' },
    rounded: [23, 4],
    refused: trained,
  },
  biases: { model: 'qwen2', lora: { target_modules: some, bias: 'all' }, rounded: [14, 2] },
  'rank-stabilised': { model: 'mistral', lora: { ...all, use_rslora: true }, rounded: [14, 14] },
  DoRA: { model: 'mistral', lora: { ...all, use_dora: true }, rounded: [14, 14] },
  PiSSA: {
    model: 'mistral',
    lora: { ...all, init_lora_weights: 'pissa' },
    rounded: [14, 14],
    refused: /another adapter changes that of/,
    savedAsOther: true,
  },
  OLoRA: {
    model: 'mistral',
    lora: { ...all, init_lora_weights: 'olora' },
    rounded: [14, 14],
    refused: /another adapter changes that of/,
    savedAsOther: true,
  },
};

const ids = [5, 9, 2, 77, 30, 31, 8, 60, 61, 12];
const counts = { merged: 0, base: 0, refused: 0, loaded: 0 };
for (const [name, { model: base, lora, qat, rounded, refused, savedAsOther }] of Object.entries(forms)) {
  for (const over of ['merged', 'base'] as const) {
    test(`${name} over ${over}`, () => {
      using _ = scope();
      using dir = temporary();
      const load = () => loadModel(golden('models', base));
      using model = load();
      const fields = { type: 'qat' as const, weight: 'int4', group_size: 4, over, ...qat };
      const attach = () => attachMethods(model, [{ type: 'lora', r: 2, ...lora }, fields], 1);
      if (over === 'base' && refused) {
        assert.throws(attach, refused);
        counts.refused++;
        return;
      }
      using adapter = attach();
      assert.equal(adapter.roundings!.size, rounded[0]);
      if (over === 'merged' && rounded[1] > 0)
        assert.match(adapter.warnings.join('\n'), new RegExp(`the merged weight of ${rounded[1]} layers is rounded`));
      const saidTies = adapter.warnings.some((message) => /lies between two codes/.test(message));
      assert.equal(saidTies, savedAsOther ?? false, adapter.warnings.join('\n'));
      perturb(adapter, 3);
      const attached = logitsOf(model, ids);
      const inTraining = ops.contiguous(ops.detach(outputOf(model, packTokens([ids]))));
      assert.ok(relativeError(numbers(inTraining), attached) <= 1e-6, 'with gradients');
      saveAdapter(model, adapter, join(dir.path, 'saved'), { base: 'b' });
      if (!savedAsOther) {
        using again = load();
        using _loaded = loadAdapter(again, join(dir.path, 'saved'));
        assert.deepEqual(logitsOf(again, ids), attached, 'loaded');
        counts.loaded++;
      }
      adapter.merge!();
      if (over === 'merged') noGrad(roundMerged);
      const error = relativeError(logitsOf(model, ids), attached);
      assert.ok(error <= 1e-5, `merged differs by ${error}`);
      counts[over]++;

      /** Rounds every weight once, as a file of the merged model does. */
      function roundMerged(): void {
        const done = new Set<Tensor>();
        for (const [path, { quantization }] of adapter.roundings!) {
          const { weight } = unwrapped(moduleAt(model.root, path)) as Linear | Embedding;
          if (!done.has(weight)) ops.copy_(weight, fakeQuantize(model.kernels, weight, quantization));
          done.add(weight);
        }
      }
    });
  }
}

test('so much was compared', (t) => {
  t.diagnostic(JSON.stringify(counts));
  assert.deepEqual(counts, { merged: 13, base: 9, refused: 4, loaded: 20 });
});
