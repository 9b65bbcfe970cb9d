/**
 * Layer-wise training beside every method on every base: in each step only the chosen parts change and have gradients, the optimizer keeps
 * nothing for the others, what is saved is what the method beside it saves, and taken off the model is as before. Methods without
 * parameters in a layer, and those that need every gradient, are refused.
 */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { loadAdapter, saveAdapter, savedAdapters } from '../../src/adapters/index.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { attachMethods, type methods } from '../../src/methods/index.ts';
import { type ModelPart, partsByKey } from '../../src/nn/index.ts';
import { createOptimizer } from '../../src/optim/index.ts';
import { scope } from '../../src/tensor/index.ts';
import { activeLayers, trainStep } from '../../src/train/index.ts';
import { temporary } from '../support.ts';
import { type Base, bases, familyBases } from './bases.ts';
import { savedBottlenecks } from './cases.ts';
import { liveHandles, logits } from './properties.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
});

type Choice = { readonly type: keyof typeof methods } & Readonly<Record<string, unknown>>;
const three = { num_virtual_tokens: 3 };
const linear = { r: 4, target_modules: 'all-linear' };

/** The methods beside it that train parameters in layers. */
const companions: Readonly<Record<string, (base: Base) => readonly Choice[]>> = {
  full: () => [{ type: 'full' }],
  lora: () => [{ type: 'lora', ...linear }],
  dora: () => [{ type: 'lora', ...linear, use_dora: true }],
  ia3: () => [{ type: 'ia3' }],
  bottleneck: () => [{ type: 'bottleneck', reduction_factor: 4 }],
  compacter: () => [{ type: 'bottleneck', config: 'compacter', reduction_factor: 4 }],
  fusion: (base) => [
    { type: 'fusion', adapters: savedBottlenecks(base, [{ reduction_factor: 4 }, { reduction_factor: 8 }]) },
  ],
  'lora, rounded': () => [
    { type: 'lora', ...linear },
    { type: 'qat', weight: 'int4', group_size: 'channel' },
  ],
  'full, rounded': () => [{ type: 'full' }, { type: 'qat', weight: 'int4', group_size: 'channel' }],
  'prefix and lora': () => [
    { type: 'prefix', ...three },
    { type: 'lora', ...linear },
  ],
};

/** The methods that it refuses, with the error. */
const refused: Readonly<Record<string, readonly [Choice, RegExp]>> = {
  adalora: [{ type: 'adalora', init_r: 4, target_r: 2 }, /adalora compares the gradients of all its parameters/],
  prompt: [
    { type: 'prompt', ...three, prompt_tuning_init: 'RANDOM' },
    /prompt \+ layerwise trains no parameter in a layer/,
  ],
  'multitask-prompt': [{ type: 'multitask-prompt', ...three, num_ranks: 2 }, /trains no parameter in a layer/],
  prefix: [{ type: 'prefix', ...three }, /prefix \+ layerwise trains no parameter in a layer/],
  'p-tuning': [{ type: 'p-tuning', ...three, encoder_hidden_size: 12 }, /trains no parameter in a layer/],
};

const policies: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  last: { policy: 'last', layers: 1 },
  lisa: { policy: 'lisa', layers: 1, every: 1 },
  badam: { policy: 'badam', every: 1, order: 'ascending' },
  schedule: {
    policy: 'schedule',
    rules: [
      { freeze: ['embeddings', 0, 'head'], step: 1 },
      { train: [0], step: 2 },
      { freeze: [1], gradient_norm: 1e6, window: 2, for: 1 },
    ],
  },
};

/** The layers of a base of two layers that have to train in each of five steps, as the policies say. */
const expected: Readonly<Record<string, readonly (readonly number[])[]>> = {
  last: [[1], [1], [1], [1], [1]],
  badam: [[0], [1], [0], [1], [0]],
  // The second mean of the norms of layer 1 is small against the first, as every number is here.
  schedule: [[0, 1], [1], [0, 1], [0, 1], [0]],
};

const counts = { cases: 0, steps: 0, refused: 0, notApplicable: 0, saved: 0 };

function prove(base: Base, companion: readonly Choice[], policy: string): void {
  const live = liveHandles();
  {
    using _ = scope();
    using dir = temporary();
    using model = base.load();
    const batch = base.batch(model);
    const plain = logits({ model, batch });
    const adapter = attachMethods(
      model,
      [...companion, { type: 'layerwise', ...policies[policy] }] as never,
      3,
      savedAdapters(model),
    );
    const { parameters } = adapter;
    using optimizer = createOptimizer({ type: 'adamw', weight_decay: 0.1 }, parameters);
    const layers = activeLayers({ model, adapter, parameters, optimizer, steps: 5, seed: 3 })!;
    const partOf = partsByKey(model);
    const partOfKey = (key: string) => (adapter.head.has(key) ? undefined : partOf(key.replace(/^\d+\./, '')));
    let trained: readonly ModelPart[] = [];
    for (let step = 0; step < 5; step++) {
      trained = layers.begin(step)?.parts ?? trained;
      const wanted = expected[policy]?.[step];
      if (wanted && model.layers === 2)
        assert.deepEqual(
          trained.filter((part) => typeof part === 'number'),
          wanted,
          `step ${step}`,
        );
      if (policy === 'lisa') assert.equal(trained.filter((part) => typeof part === 'number').length, 1);
      const before = new Map([...parameters].map(([key, tensor]) => [key, tensor.bytes()]));
      trainStep({
        model,
        parameters,
        optimizer,
        adapter,
        layers,
        batches: [batch],
        lr: 1e-2,
        maxGradNorm: 1,
        seed: 3,
        step,
      });
      const kept = [...optimizer.state.keys()];
      const changed = new Set<ModelPart>();
      for (const [key, tensor] of parameters) {
        const part = partOfKey(key);
        const trains = part === undefined || trained.includes(part);
        assert.equal(tensor.requiresGrad, trains, key);
        const same = Buffer.compare(before.get(key)!, tensor.bytes()) === 0;
        if (!trains) {
          assert.ok(same, `${key} is frozen in step ${step}, and changed`);
          assert.ok(!kept.some((name) => name.startsWith(`${key}.`)), `the optimizer keeps state of ${key}`);
        } else if (!same && part !== undefined) changed.add(part);
      }
      assert.deepEqual([...changed].sort(), [...trained].sort(), `what changed in step ${step}`);
      counts.steps++;
    }
    const writesModel = companion.some(({ type }) => type === 'full');
    // What is saved does not depend on the policy.
    if (!writesModel && policy === 'lisa') {
      const after = logits({ model, batch });
      saveAdapter(model, adapter, join(dir.path, 'adapter'), { base: 'b' });
      const files = readdirSync(join(dir.path, 'adapter'), { recursive: true }).map(String);
      assert.ok(!files.some((file) => file.includes('layerwise')), files.join());
      using again = base.load();
      using _loaded = loadAdapter(again, join(dir.path, 'adapter'));
      assert.deepEqual(logits({ model: again, batch }), after, 'loaded');
      counts.saved++;
    }
    adapter.detach();
    if (!writesModel) assert.deepEqual(logits({ model, batch }), plain, 'detached');
  }
  assert.equal(liveHandles(), live, 'live handles');
  counts.cases++;
}

/** Every decoder and way of packing, and one of each other family, with and without a head. */
const families = ['gpt2', 'bert-seqcls', 'roberta-tokcls', 'distilbert-seqcls', 'gpt-neox', 'vit', 'deit', 'llama-qa'];
const all = [
  ...bases,
  ...familyBases.filter(({ name }) => families.includes(name) || name === 'bert-tokcls for embedding'),
];
for (const base of all) {
  test(base.name, () => {
    for (const [name, companionOf] of Object.entries(companions)) {
      let companion: readonly Choice[];
      try {
        companion = companionOf(base);
        using model = base.load();
        attachMethods(model, companion as never, 3, savedAdapters(model)).detach();
      } catch {
        counts.notApplicable++; // the method does not support this base, with or without layers in turn
        continue;
      }
      for (const policy of Object.keys(policies)) {
        try {
          prove(base, companion, policy);
        } catch (error) {
          (error as Error).message = `${name}, ${policy}: ${(error as Error).message}`;
          throw error;
        }
      }
    }
    for (const [name, [choice, why]] of Object.entries(refused)) {
      using _ = scope();
      using model = base.load();
      assert.throws(
        () => {
          using adapter = attachMethods(model, [choice, { type: 'layerwise', ...policies.lisa }] as never, 3);
          const { parameters } = adapter;
          using optimizer = createOptimizer({ type: 'adamw' }, parameters);
          activeLayers({ model, adapter, parameters, optimizer, steps: 5, seed: 3 });
        },
        why,
        name,
      );
      counts.refused++;
    }
  });
}

test('every base, method and policy was tried', (t) => {
  t.diagnostic(JSON.stringify(counts));
  const { length } = Object.keys(companions);
  assert.equal(counts.cases, 4 * (length * all.length - counts.notApplicable));
  assert.equal(counts.steps, 5 * counts.cases);
  assert.equal(counts.refused, 5 * all.length);
  assert.ok(counts.cases >= 700 && counts.saved >= 140, JSON.stringify(counts));
  assert.equal(all.length, bases.length + families.length + 1);
});
