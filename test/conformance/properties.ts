/** The properties that every method has on every base (design §5), and the function that checks them for one case. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { loadAdapter, saveAdapter } from '../../src/adapters/index.ts';
import { pack } from '../../src/data/index.ts';
import { currentEngine } from '../../src/engine/index.ts';
import type { Adapter } from '../../src/methods/index.ts';
import { loadModel, saveModel } from '../../src/models/index.ts';
import { type Model, namedTensors, outputOf, useGradientCheckpointing } from '../../src/nn/index.ts';
import { createOptimizer } from '../../src/optim/index.ts';
import { tokensOf } from '../../src/tasks/index.ts';
import { manualSeed, mixSeed, noGrad, ops, scope, type Tensor } from '../../src/tensor/index.ts';
import { batchLoss, type MicroBatch, trainStep } from '../../src/train/index.ts';
import { numbers, relativeError, temporary } from '../support.ts';
import type { Base } from './bases.ts';
import { type MethodCases, perturb } from './cases.ts';

export const liveHandles = () => currentEngine().native.memory().handles;

/** One method with one config on one freshly loaded base. */
export interface Case {
  readonly base: Base;
  readonly model: Model;
  readonly batch: MicroBatch;
  readonly cases: MethodCases;
  readonly config: string;
  attach(model: Model, seed?: number): Adapter;
  /** True: a head is trained too, on a copy, which other kernels compute: results are equal up to rounding. */
  readonly headTrained?: boolean;
}

/** Returns the output of the head for the first row. */
export const logits = ({ model, batch }: Pick<Case, 'model' | 'batch'>): Float32Array =>
  noGrad(() => {
    using _ = scope();
    return numbers(outputOf(model, tokensOf(model, pack([batch.rows[0]!]))));
  });
const bytesOf = (tensors: Iterable<readonly [string, Tensor]>) =>
  new Map([...tensors].map(([key, tensor]) => [key, tensor.bytes().slice()]));

/** Trains for some steps on one batch, and returns the loss before each. */
function train({ model, batch, cases }: Case, { parameters }: Adapter, steps: number): number[] {
  using optimizer = createOptimizer(
    { type: 'adamw', beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 },
    parameters,
  );
  const counts = new Set<number>();
  const losses = Array.from({ length: steps }, (_, step) => {
    const input = { model, parameters, optimizer, batches: [batch], lr: cases.lr, maxGradNorm: 1, seed: 3, step };
    const { loss } = trainStep(input);
    counts.add(liveHandles());
    return loss;
  });
  assert.equal(counts.size, 1, `live handles after every step: ${[...counts]}`);
  return losses;
}

/** Returns the loss of one batch, the gradient of each parameter, and how many blocks were computed for them. */
function gradientsOf({ model, batch }: Case, { parameters }: Adapter) {
  using _ = scope();
  let blocks = 0;
  const removePort = model.ports.add({
    enabled: true,
    afterMlp(sublayer) {
      blocks++;
      return sublayer.delta;
    },
  });
  manualSeed(mixSeed(3, 1));
  const sum = batchLoss(model, batch);
  sum.backward();
  removePort();
  const gradients = new Map([...parameters].map(([key, { grad }]) => [key, numbers(ops.contiguous(grad!))]));
  for (const parameter of parameters.values()) parameter.grad = undefined;
  return { loss: sum.item(), gradients, blocks };
}

/** Checks by name: each throws where the property does not hold, or returns that it does not apply to the method. */
export const properties: Readonly<Record<string, (c: Case) => 'not applicable' | undefined>> = {
  'a fresh adapter changes no logit'(c) {
    const plain = logits(c);
    using _ = c.attach(c.model);
    const declared = c.cases.startsUnchanged(c.config);
    const unchanged = declared && c.headTrained ? 'nearly' : declared;
    if (unchanged === 'nearly') assert.ok(relativeError(logits(c), plain) <= 1e-5, 'only rounding differs');
    else if (unchanged) assert.deepEqual(logits(c), plain);
    else assert.ok(relativeError(logits(c), plain) > 1e-4, 'random initial values change the logits');
    return undefined;
  },

  'every parameter has a gradient, and no other tensor has one'(c) {
    const base = [...namedTensors(c.model.root)];
    using adapter = c.attach(c.model);
    perturb(adapter, 1);
    batchLoss(c.model, c.batch).backward();
    const trained = new Set(adapter.parameters.values());
    assert.ok(trained.size > 0);
    for (const [key, parameter] of adapter.parameters) {
      assert.ok(parameter.grad, `${key} has no gradient`);
      assert.deepEqual(parameter.grad.shape, parameter.shape, key);
      const norm = ops.vectorNorm(parameter.grad, 2).item();
      assert.ok(
        Number.isFinite(norm) && (norm > 0 || c.cases.withoutGradient?.test(key)),
        `the gradient of ${key} has the norm ${norm}`,
      );
    }
    for (const [key, tensor] of [...base, ...namedTensors(c.model.root)]) {
      if (!trained.has(tensor)) assert.ok(!tensor.requiresGrad && !tensor.grad, `${key} has a gradient`);
    }
    for (const parameter of trained) parameter.grad = undefined;
    return undefined;
  },

  'a saved adapter is loaded bit for bit'(c) {
    using dir = temporary();
    using adapter = c.attach(c.model);
    perturb(adapter, 2);
    const out = join(dir.path, 'saved');
    if (c.cases.trainsBase) {
      assert.throws(() => saveAdapter(c.model, adapter, out, { base: 'b' }), /PEFT has no format/);
      saveModel(c.model, out, dir.path);
      using again = loadModel(out);
      assert.deepEqual(bytesOf(namedTensors(again.root)), bytesOf(namedTensors(c.model.root)));
      const error = relativeError(logits({ ...c, model: again }), logits(c));
      assert.ok(error <= (c.headTrained ? 1e-5 : 0), `the saved model differs by ${error}`);
      return undefined;
    }
    assert.throws(() => saveModel(c.model, join(dir.path, 'model'), dir.path), /Merge or detach it first/);
    saveAdapter(c.model, adapter, out, { base: 'b' });
    using model = c.base.load();
    using loaded = loadAdapter(model, out);
    if (c.cases.savedAsOther?.test(c.config)) {
      const error = relativeError(logits({ ...c, model }), logits(c));
      assert.ok(error <= 1e-5, `the saved adapter differs by ${error}`);
      return undefined;
    }
    assert.deepEqual(bytesOf(loaded.parameters), bytesOf(adapter.parameters));
    assert.deepEqual(logits({ ...c, model }), logits(c));
    return undefined;
  },

  'merging keeps the logits, unmerging restores them, and the merged model can be saved'(c) {
    using adapter = c.attach(c.model);
    if (c.cases.mergeTolerance === undefined || c.cases.unmergeable?.(c.base, c.config)) {
      assert.equal(adapter.merge, undefined);
      return 'not applicable';
    }
    perturb(adapter, 4);
    const attached = logits(c);
    adapter.merge!();
    const merged = logits(c);
    const error = relativeError(merged, attached);
    assert.ok(error <= c.cases.mergeTolerance, `merged differs by ${error}`);
    assert.ok(adapter.enabled);
    assert.throws(() => {
      adapter.enabled = false;
    }, /merged/);
    using dir = temporary();
    saveModel(c.model, join(dir.path, 'model'), dir.path);
    using written = loadModel(join(dir.path, 'model'));
    // A quantised base is saved dense: other kernels then compute the layers that were not merged.
    const drift = relativeError(logits({ ...c, model: written }), merged);
    assert.ok(drift <= (c.base.packed || c.headTrained ? 1e-5 : 0), `the saved model differs by ${drift}`);
    adapter.unmerge!();
    assert.deepEqual(logits(c), attached, 'unmerged');
    return undefined;
  },

  'detaching restores the base bit for bit, after training and while merged too'(c) {
    if (c.cases.trainsBase) return 'not applicable';
    const [plain, weights] = [logits(c), bytesOf(namedTensors(c.model.root))];
    for (const merged of [false, true]) {
      const adapter = c.attach(c.model);
      train(c, adapter, 1);
      perturb(adapter, 5);
      assert.notDeepEqual(logits(c), plain);
      if (merged) adapter.merge?.();
      adapter.detach();
      adapter.detach();
      assert.deepEqual(bytesOf(namedTensors(c.model.root)), weights);
      assert.deepEqual(logits(c), plain);
    }
    return undefined;
  },

  'two adapters on one base are independent'(c) {
    if (c.cases.trainsBase) return 'not applicable';
    const plain = logits(c);
    const alone = [10, 11].map((seed) => {
      using adapter = c.attach(c.model, seed);
      perturb(adapter, seed);
      return logits(c);
    }) as [Float32Array, Float32Array];
    for (const detachedFirst of [0, 1] as const) {
      const pair = [10, 11].map((seed) => {
        const adapter = c.attach(c.model, seed);
        perturb(adapter, seed);
        return adapter;
      }) as [Adapter, Adapter];
      const only = (which: 0 | 1 | undefined) => {
        pair.forEach((adapter, i) => {
          adapter.enabled = i === which;
        });
        return logits(c);
      };
      const both = logits(c);
      for (const which of [0, 1] as const) {
        assert.notDeepEqual(both, alone[which]);
        assert.deepEqual(only(which), alone[which], `only adapter ${which} is enabled`);
      }
      assert.deepEqual(only(undefined), plain, 'both are disabled');

      only(0);
      const before = bytesOf(pair[1].parameters);
      train(c, pair[0], 2);
      assert.deepEqual(bytesOf(pair[1].parameters), before, 'training one does not change the other');
      for (const parameter of pair[1].parameters.values()) assert.equal(parameter.grad, undefined);
      const expected = [only(0), only(1)] as const;
      assert.deepEqual(expected[1], alone[1]);

      for (const adapter of pair) adapter.enabled = true;
      for (const adapter of pair) adapter.merge?.();
      const [remaining, remainingLogits] = [pair[1 - detachedFirst]!, expected[1 - detachedFirst]!];
      pair[detachedFirst].detach();
      if (remaining.merge) {
        const error = relativeError(logits(c), remainingLogits);
        assert.ok(error <= c.cases.mergeTolerance!, `after detaching one, the other, merged, differs by ${error}`);
        remaining.unmerge!();
      }
      assert.deepEqual(logits(c), remainingLogits, 'the remaining adapter');
      remaining.detach();
      assert.deepEqual(logits(c), plain, 'both are detached');
    }
    return undefined;
  },

  'with gradient checkpointing, losses and gradients are the same'(c) {
    using adapter = c.attach(c.model);
    perturb(adapter, 9);
    const plain = gradientsOf(c, adapter);
    using _ = useGradientCheckpointing(true);
    const again = gradientsOf(c, adapter);
    assert.equal(again.loss, plain.loss);
    assert.ok(again.blocks > plain.blocks && again.blocks <= 2 * plain.blocks, `${again.blocks} blocks`);
    assert.equal(again.gradients.size, adapter.parameters.size);
    for (const [key, gradient] of again.gradients) {
      const error = relativeError(gradient, plain.gradients.get(key)!);
      assert.ok(error <= 1e-6, `the gradient of ${key} differs by ${error}`);
    }
    return undefined;
  },

  'a few steps on one batch lower its loss'(c) {
    using adapter = c.attach(c.model);
    const losses = train(c, adapter, 8);
    assert.ok(losses.at(-1)! < 0.98 * losses[0]!, `from ${losses[0]} to ${losses.at(-1)}`);
    return undefined;
  },

  'the seed decides the initial values'(c) {
    const initial = (seed: number) => {
      using adapter = c.attach(c.model, seed);
      return bytesOf(adapter.parameters);
    };
    const first = initial(7);
    assert.deepEqual(initial(7), first);
    if (c.cases.trainsBase || c.cases.seedIndependent?.test(c.config)) return 'not applicable';
    const other = initial(8);
    const random = [...first].filter(([key, bytes]) => Buffer.compare(bytes, other.get(key)!) !== 0);
    assert.ok(random.length > 0, 'another seed gives other values');
    const distinct = new Set(random.map(([, bytes]) => Buffer.from(bytes).toString('base64')));
    assert.equal(distinct.size, random.length, 'no two parameters have the same values');
    return undefined;
  },
};

/** Checks every property of one case, each on a freshly loaded base; returns how many hold, and how many do not apply. */
export function checkProperties(c: Omit<Case, 'model' | 'batch'>): { held: number; notApplicable: number } {
  const counts = { held: 0, notApplicable: 0 };
  for (const [property, check] of Object.entries(properties)) {
    using model = c.base.load();
    const fullCase: Case = { ...c, model, batch: c.base.batch(model) };
    logits(fullCase); // the first forward pass fills caches
    const before = liveHandles();
    try {
      using _ = scope();
      if (check(fullCase) === 'not applicable') counts.notApplicable++;
      else counts.held++;
    } catch (cause) {
      throw new Error(`${property}: ${(cause as Error).message}`, { cause });
    }
    assert.equal(liveHandles(), before, `${property}: live handles`);
  }
  return counts;
}
