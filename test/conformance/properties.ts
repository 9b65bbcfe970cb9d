/** What every method must keep on every base (design §5), and how one case is run. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { loadAdapter, saveAdapter } from '../../src/adapters/index.ts';
import { pack } from '../../src/data/index.ts';
import { currentEngine } from '../../src/engine/index.ts';
import type { Adapter } from '../../src/methods/index.ts';
import { loadModel, saveModel } from '../../src/models/index.ts';
import { type Model, namedTensors, outputOf, useGradientCheckpointing } from '../../src/nn/index.ts';
import { adamw } from '../../src/optim/index.ts';
import { tokensOf } from '../../src/tasks/index.ts';
import { manualSeed, mixSeed, noGrad, ops, scope, type Tensor } from '../../src/tensor/index.ts';
import { batchLoss, type MicroBatch, trainStep } from '../../src/train/index.ts';
import { numbers, relativeError, temporary } from '../support.ts';
import { type Base, disturb, type MethodCases } from './cases.ts';

export const handles = () => currentEngine().native.memory().handles;

/** One method with one configuration on one freshly loaded base. */
export interface Case {
  readonly base: Base;
  readonly model: Model;
  readonly batch: MicroBatch;
  readonly cases: MethodCases;
  readonly config: string;
  attach(model: Model, seed?: number): Adapter;
  /** A head is trained beside it, on a copy, which other kernels compute: equal but for rounding. */
  readonly headTrained?: boolean;
}

/** What the head says of the first row. */
export const logits = ({ model, batch }: Pick<Case, 'model' | 'batch'>): Float32Array =>
  noGrad(() => {
    using _ = scope();
    return numbers(outputOf(model, tokensOf(model, pack([batch.rows[0]!]))));
  });
const bytesOf = (tensors: Iterable<readonly [string, Tensor]>) =>
  new Map([...tensors].map(([key, tensor]) => [key, tensor.bytes().slice()]));

/** Steps on one batch; returns the loss before each. */
function learn({ model, batch, cases }: Case, { parameters }: Adapter, steps: number): number[] {
  using optimizer = adamw(parameters, { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 });
  const counts = new Set<number>();
  const losses = Array.from({ length: steps }, (_, step) => {
    const input = { model, parameters, optimizer, batches: [batch], lr: cases.lr, maxGradNorm: 1, seed: 3, step };
    const { loss } = trainStep(input);
    counts.add(handles());
    return loss;
  });
  assert.equal(counts.size, 1, `live handles after every step: ${[...counts]}`);
  return losses;
}

/** The loss of one batch, each parameter's gradient, and how many blocks were computed for them. */
function gradientsOf({ model, batch }: Case, { parameters }: Adapter) {
  using _ = scope();
  let blocks = 0;
  const counted = model.ports.add({
    enabled: true,
    afterMlp(half) {
      blocks++;
      return half.delta;
    },
  });
  manualSeed(mixSeed(3, 1));
  const sum = batchLoss(model, batch);
  sum.backward();
  counted();
  const gradients = new Map([...parameters].map(([key, { grad }]) => [key, numbers(ops.contiguous(grad!))]));
  for (const parameter of parameters.values()) parameter.grad = undefined;
  return { loss: sum.item(), gradients, blocks };
}

/** Each is true of the case, or says that the method does not promise it. */
export const properties: Readonly<Record<string, (c: Case) => 'not promised' | undefined>> = {
  'a fresh adapter changes no logit'(c) {
    const plain = logits(c);
    using _ = c.attach(c.model);
    const promised = c.cases.freshIsSilent(c.config);
    const silent = promised && c.headTrained ? 'nearly' : promised;
    if (silent === 'nearly') assert.ok(relativeError(logits(c), plain) <= 1e-5, 'rounding alone shows');
    else if (silent) assert.deepEqual(logits(c), plain);
    else assert.ok(relativeError(logits(c), plain) > 1e-4, 'a random start shows');
    return undefined;
  },

  'every parameter gets a gradient, and nothing else does'(c) {
    const base = [...namedTensors(c.model.root)];
    using adapter = c.attach(c.model);
    disturb(adapter, 1);
    batchLoss(c.model, c.batch).backward();
    const trained = new Set(adapter.parameters.values());
    assert.ok(trained.size > 0);
    for (const [key, parameter] of adapter.parameters) {
      assert.ok(parameter.grad, `${key} has no gradient`);
      assert.deepEqual(parameter.grad.shape, parameter.shape, key);
      const norm = ops.vectorNorm(parameter.grad, 2).item();
      assert.ok(
        Number.isFinite(norm) && (norm > 0 || c.cases.idle?.test(key)),
        `the gradient of ${key} has the norm ${norm}`,
      );
    }
    for (const [key, tensor] of [...base, ...namedTensors(c.model.root)]) {
      if (!trained.has(tensor)) assert.ok(!tensor.requiresGrad && !tensor.grad, `${key} has a gradient`);
    }
    for (const parameter of trained) parameter.grad = undefined;
    return undefined;
  },

  'saved and loaded it is the same, bit for bit'(c) {
    using dir = temporary();
    using adapter = c.attach(c.model);
    disturb(adapter, 2);
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
      assert.ok(error <= 1e-5, `what was saved differs by ${error}`);
      return undefined;
    }
    assert.deepEqual(bytesOf(loaded.parameters), bytesOf(adapter.parameters));
    assert.deepEqual(logits({ ...c, model }), logits(c));
    return undefined;
  },

  'merged equals attached, unmerged is attached again, and the merged model can be saved'(c) {
    using adapter = c.attach(c.model);
    if (c.cases.mergeTolerance === undefined || c.cases.unmergeable?.(c.base, c.config)) {
      assert.equal(adapter.merge, undefined);
      return 'not promised';
    }
    disturb(adapter, 4);
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
    // A packed base is written dense: layers that were not merged then take another way to the same numbers.
    const drift = relativeError(logits({ ...c, model: written }), merged);
    assert.ok(drift <= (c.base.packed || c.headTrained ? 1e-5 : 0), `the saved model differs by ${drift}`);
    adapter.unmerge!();
    assert.deepEqual(logits(c), attached, 'unmerged');
    return undefined;
  },

  'detached, even after training or while merged, it leaves the base bit for bit'(c) {
    if (c.cases.trainsBase) return 'not promised';
    const [plain, weights] = [logits(c), bytesOf(namedTensors(c.model.root))];
    for (const merged of [false, true]) {
      const adapter = c.attach(c.model);
      learn(c, adapter, 1);
      disturb(adapter, 5);
      assert.notDeepEqual(logits(c), plain);
      if (merged) adapter.merge?.();
      adapter.detach();
      adapter.detach();
      assert.deepEqual(bytesOf(namedTensors(c.model.root)), weights);
      assert.deepEqual(logits(c), plain);
    }
    return undefined;
  },

  'two adapters on one base do not touch each other'(c) {
    if (c.cases.trainsBase) return 'not promised';
    const plain = logits(c);
    const alone = [10, 11].map((seed) => {
      using adapter = c.attach(c.model, seed);
      disturb(adapter, seed);
      return logits(c);
    }) as [Float32Array, Float32Array];
    for (const firstOut of [0, 1] as const) {
      const pair = [10, 11].map((seed) => {
        const adapter = c.attach(c.model, seed);
        disturb(adapter, seed);
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
        assert.deepEqual(only(which), alone[which], `${which} switched on alone`);
      }
      assert.deepEqual(only(undefined), plain, 'both switched off');

      only(0);
      const before = bytesOf(pair[1].parameters);
      learn(c, pair[0], 2);
      assert.deepEqual(bytesOf(pair[1].parameters), before, 'training one leaves the other');
      for (const parameter of pair[1].parameters.values()) assert.equal(parameter.grad, undefined);
      const expected = [only(0), only(1)] as const;
      assert.deepEqual(expected[1], alone[1]);

      for (const adapter of pair) adapter.enabled = true;
      for (const adapter of pair) adapter.merge?.();
      const [left, stays] = [pair[1 - firstOut]!, expected[1 - firstOut]!];
      pair[firstOut].detach();
      if (left.merge) {
        const error = relativeError(logits(c), stays);
        assert.ok(error <= c.cases.mergeTolerance!, `one detached, the other, merged, differs by ${error}`);
        left.unmerge!();
      }
      assert.deepEqual(logits(c), stays, 'the one that stays');
      left.detach();
      assert.deepEqual(logits(c), plain, 'both detached');
    }
    return undefined;
  },

  'with gradient checkpointing, losses and gradients are the same'(c) {
    using adapter = c.attach(c.model);
    disturb(adapter, 9);
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

  'some steps on one batch lower its loss'(c) {
    using adapter = c.attach(c.model);
    const losses = learn(c, adapter, 8);
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
    if (c.cases.trainsBase || c.cases.drawsNothing?.test(c.config)) return 'not promised';
    const other = initial(8);
    const drawn = [...first].filter(([key, bytes]) => Buffer.compare(bytes, other.get(key)!) !== 0);
    assert.ok(drawn.length > 0, 'another seed, other values');
    const distinct = new Set(drawn.map(([, bytes]) => Buffer.from(bytes).toString('base64')));
    assert.equal(distinct.size, drawn.length, 'no two parameters are drawn alike');
    return undefined;
  },
};

/** Every property of one case, each on a freshly loaded base; how many are kept, and how many are not promised. */
export function holds(c: Omit<Case, 'model' | 'batch'>): { kept: number; notPromised: number } {
  const counts = { kept: 0, notPromised: 0 };
  for (const [property, check] of Object.entries(properties)) {
    using model = c.base.load();
    const whole: Case = { ...c, model, batch: c.base.batch(model) };
    logits(whole); // tables that a first forward fills
    const before = handles();
    try {
      using _ = scope();
      if (check(whole) === 'not promised') counts.notPromised++;
      else counts.kept++;
    } catch (cause) {
      throw new Error(`${property}: ${(cause as Error).message}`, { cause });
    }
    assert.equal(handles(), before, `${property}: live handles`);
  }
  return counts;
}
