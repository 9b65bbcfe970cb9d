/**
 * Quantisation-aware training beside every method on every family: what is computed in training is what is computed without gradients,
 * after saving and loading, and after merging and packing; checkpointing changes nothing; taken off, the model is as before.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { loadAdapter, saveAdapter, savedAdapters } from '../../src/adapters/index.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { type AttachedAdapter, attachMethods, type methods } from '../../src/methods/index.ts';
import {
  type Embedding,
  fakeQuantize,
  type Linear,
  type Model,
  moduleAt,
  unwrapped,
  useGradientCheckpointing,
} from '../../src/nn/index.ts';
import { createOptimizer } from '../../src/optim/index.ts';
import { pack } from '../../src/quant/index.ts';
import { noGrad, ops, scope } from '../../src/tensor/index.ts';
import { batchLoss, type MicroBatch, trainStep } from '../../src/train/index.ts';
import { numbers, relativeError, temporary } from '../support.ts';
import { type Base, bases, familyBases } from './bases.ts';
import { savedBottlenecks } from './cases.ts';
import { liveHandles, logits } from './properties.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
});

type Choice = { readonly type: keyof typeof methods } & Readonly<Record<string, unknown>>;
type Fields = Readonly<Record<string, unknown>>;

const three = { num_virtual_tokens: 3 };

/** The methods beside it: those that change weights, and those that do not. */
const companions: Readonly<Record<string, (base: Base) => Choice>> = {
  lora: () => ({ type: 'lora', r: 4, target_modules: 'all-linear' }),
  dora: () => ({ type: 'lora', r: 4, use_dora: true, target_modules: 'all-linear' }),
  adalora: () => ({ type: 'adalora', init_r: 4, target_r: 2, target_modules: 'all-linear' }),
  ia3: () => ({ type: 'ia3' }),
  full: () => ({ type: 'full' }),
  bottleneck: () => ({ type: 'bottleneck', reduction_factor: 4 }),
  fusion: (base) => ({
    type: 'fusion',
    adapters: savedBottlenecks(base, [{ reduction_factor: 4 }, { reduction_factor: 8 }]),
  }),
  prompt: () => ({ type: 'prompt', ...three, prompt_tuning_init: 'RANDOM' }),
  'multitask-prompt': () => ({ type: 'multitask-prompt', ...three, num_ranks: 2 }),
  prefix: () => ({ type: 'prefix', ...three }),
  'p-tuning': () => ({ type: 'p-tuning', ...three, encoder_hidden_size: 12 }),
};

/** Ways of rounding that fit the narrow layers of every model here. */
const roundings: Readonly<Record<string, Fields>> = {
  'int4 by row': { weight: 'int4', group_size: 'channel' },
  'int8 in groups, asymmetric, inputs too': { weight: 'int8', group_size: 2, symmetric: false, activation: 'int8' },
  'int3 over the base': { weight: 'int3', group_size: 2, over: 'base' },
  'int4 over the base, inputs too': { weight: 'int4', group_size: 'channel', over: 'base', activation: 'int8' },
};

const counts = { cases: 0, merged: 0, packed: 0, refused: 0 };

function train(model: Model, batch: MicroBatch, adapter: AttachedAdapter): void {
  const { parameters } = adapter;
  using optimizer = createOptimizer({ type: 'adamw', weight_decay: 0.01 }, parameters);
  const handles = new Set<number>();
  for (let step = 0; step < 3; step++) {
    adapter.beforeStep?.(step, 3);
    trainStep({ model, parameters, optimizer, adapter, batches: [batch], lr: 1e-2, maxGradNorm: 1, seed: 3, step });
    handles.add(liveHandles());
  }
  assert.equal(handles.size, 1, `live handles after every step: ${[...handles]}`);
}

/** The loss and the gradients of a batch. */
function gradientsOf(model: Model, batch: MicroBatch, { parameters }: AttachedAdapter) {
  using _ = scope();
  const sum = batchLoss(model, batch);
  const loss = sum.item();
  sum.backward();
  const gradients = new Map([...parameters].map(([key, t]) => [key, t.grad ? numbers(t.grad) : undefined] as const));
  for (const tensor of parameters.values()) tensor.grad = undefined;
  return { loss, gradients };
}

/** Puts the numbers of the packed weights into the layers of a merged model. */
function packMerged(model: Model, adapter: AttachedAdapter): void {
  for (const [path, { quantization, learned }] of adapter.roundings!) {
    const layer = unwrapped(moduleAt(model.root, path)) as Linear | Embedding;
    const weight = layer.denseWeight();
    const isWhole = quantization.groupSize === undefined || quantization.groupSize % 32 === 0;
    const width = weight.size(1);
    if (isWhole && width % 32 === 0) {
      const packed = pack(weight, quantization, learned);
      assert.deepEqual(
        numbers(ops.dequantize(packed.weight, packed.format)),
        numbers(fakeQuantize(model.kernels, weight, quantization, learned)),
        path,
      );
      counts.packed++;
    }
    ops.copy_(weight, fakeQuantize(model.kernels, weight, quantization, learned));
  }
}

/** As `relativeError`; the one output of a regression may be near zero, where its error is that of the terms that it is the sum of. */
const errorOf = (got: Float32Array, want: Float32Array): number =>
  relativeError(got, want) * Math.min(1, 10 * Math.max(...want.map(Math.abs)));

function prove(base: Base, companion: Choice, rounding: Fields): void {
  const live = liveHandles();
  {
    using _ = scope();
    using dir = temporary();
    using model = base.load();
    const batch = base.batch(model);
    const plain = logits({ model, batch });
    const choices = [companion, { type: 'qat' as const, ...rounding }];
    const writesModel = companion.type === 'full';
    if (writesModel && rounding.over === 'base') {
      assert.throws(() => attachMethods(model, choices, 3), /over: base rounds a frozen weight, and '\S+' is trained/);
      counts.refused++;
      return;
    }
    const adapter = attachMethods(model, choices, 3, savedAdapters(model));
    assert.ok(relativeError(logits({ model, batch }), plain) > 1e-6, 'rounding changes the outputs');
    const first = gradientsOf(model, batch, adapter);
    {
      using _checkpointing = useGradientCheckpointing(true);
      const again = gradientsOf(model, batch, adapter);
      assert.equal(again.loss, first.loss, 'checkpointing');
      for (const [key, gradient] of first.gradients)
        if (gradient) assert.ok(relativeError(again.gradients.get(key)!, gradient) < 1e-5, key);
    }
    train(model, batch, adapter);
    const trained = logits({ model, batch });
    const { loss } = gradientsOf(model, batch, adapter);
    const without = noGrad(() => {
      using _s = scope();
      return batchLoss(model, batch).item();
    });
    assert.ok(Math.abs(without / loss - 1) < 1e-6, `with gradients ${loss}, without ${without}`);
    if (!writesModel) {
      saveAdapter(model, adapter, join(dir.path, 'adapter'), { base: 'b' });
      using again = base.load();
      using _loaded = loadAdapter(again, join(dir.path, 'adapter'));
      const error = relativeError(logits({ model: again, batch }), trained);
      assert.ok(error <= (companion.type === 'adalora' ? 1e-5 : 0), `loaded differs by ${error}`);
    }
    if (adapter.merge) {
      adapter.merge();
      if (rounding.over === 'base') {
        const error = rounding.activation ? 0 : errorOf(logits({ model, batch }), trained);
        assert.ok(error <= 1e-5, `merged differs by ${error}`);
      } else if (!rounding.activation) {
        noGrad(() => packMerged(model, adapter));
        const error = errorOf(logits({ model, batch }), trained);
        assert.ok(error <= 1e-5, `merged and packed differs by ${error}`);
      }
      adapter.unmerge!();
      counts.merged++;
      if (!rounding.activation && rounding.over !== 'base') {
        adapter.detach();
        counts.cases++;
        return; // the base now holds what was packed
      }
      assert.deepEqual(logits({ model, batch }), trained, 'unmerged');
    }
    adapter.detach();
    if (!writesModel) assert.deepEqual(logits({ model, batch }), plain, 'detached');
  }
  assert.equal(liveHandles(), live, 'live handles');
  counts.cases++;
}

const floatBases = [...bases.filter(({ packed }) => !packed), ...familyBases];
for (const base of floatBases) {
  for (const [name, rounding] of Object.entries(roundings)) {
    test(`${base.name}, ${name}`, () => {
      for (const [companion, choiceOf] of Object.entries(companions)) {
        let choice: Choice;
        try {
          choice = choiceOf(base);
          using model = base.load();
          attachMethods(model, [choice], 3, savedAdapters(model)).detach();
        } catch {
          continue; // the method does not support this model, with or without rounding
        }
        try {
          prove(base, choice, rounding);
        } catch (error) {
          (error as Error).message = `${companion}: ${(error as Error).message}`;
          throw error;
        }
      }
    });
  }
}

test('so much was tried', (t) => {
  t.diagnostic(JSON.stringify(counts));
  assert.ok(counts.cases >= 600, String(counts.cases));
});
