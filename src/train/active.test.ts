/** What frozen layers really free: the optimizer's state, gradients, and what the backward pass keeps. The model's layers have 17 MB each. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import test, { after, before } from 'node:test';
import { randomLlama } from '../../test/samples/llama.ts';
import { temporary } from '../../test/support.ts';
import { pack } from '../data/index.ts';
import { currentEngine, startEngine } from '../engine/index.ts';
import { attachMethods } from '../methods/index.ts';
import { loadModel } from '../models/index.ts';
import { packTokens } from '../nn/index.ts';
import { createOptimizer } from '../optim/index.ts';
import { scope } from '../tensor/index.ts';
import { activeLayers } from './active.ts';
import { trainStep } from './step.ts';

const folder = temporary();
const dir = join(folder.path, 'llama');
before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
  randomLlama(dir, { width: 512, inner: 2048, layers: 4 });
});
after(() => folder[Symbol.dispose]());

const ids = Int32Array.from({ length: 12 }, (_, i) => (i * 7) % 96);
const batches = [pack([{ ids, labels: ids, place: 'test' }])];
const layerBytes = 4 * (4 * 512 * 512 + 3 * 512 * 2048 + 2 * 512);

/** A model that is trained in full with its layers in turn, a step at a time. */
function training(policy: Readonly<Record<string, unknown>>, steps: number) {
  using made = new DisposableStack();
  const model = made.use(loadModel(dir));
  const adapter = attachMethods(model, [{ type: 'full' }, { type: 'layerwise', ...policy }] as never, 0);
  const { parameters } = adapter;
  const optimizer = made.use(createOptimizer({ type: 'adamw' }, parameters));
  const layers = activeLayers({ model, adapter, parameters, optimizer, steps, seed: 0 })!;
  const all = made.move();
  let next = 0;
  const begin = () => layers.begin(next);
  const step = () => {
    begin();
    const common = { model, parameters, optimizer, adapter, layers, batches };
    trainStep({ ...common, lr: 1e-5, maxGradNorm: undefined, seed: 0, step: next++ });
  };
  return { model, optimizer, begin, step, [Symbol.dispose]: () => all.dispose() };
}

const stateBytes = ({ optimizer }: ReturnType<typeof training>, layers: readonly number[]) =>
  [...optimizer.state]
    .filter(([name]) => layers.some((layer) => name.startsWith(`0.model.layers.${layer}.`)))
    .reduce((sum, [, tensor]) => sum + tensor.nbytes, 0);

test('memory of the process falls by the state of the layers that are frozen, and handles by its tensors', (t) => {
  const { native } = currentEngine();
  using run = training({ policy: 'schedule', rules: [{ freeze: '0-2', step: 3 }] }, 8);
  for (let i = 0; i < 3; i++) run.step();
  const bytes = stateBytes(run, [0, 1, 2]);
  assert.ok(bytes > 5.9 * layerBytes, 'two moments of three layers');
  const [before, handles] = [process.memoryUsage.rss(), native.memory().handles];
  run.step();
  run.step();
  const fall = before - process.memoryUsage.rss();
  t.diagnostic(`${(bytes / 1e6).toFixed(0)} MB of state, memory fell by ${(fall / 1e6).toFixed(0)} MB`);
  assert.ok(fall >= 0.9 * bytes, `${fall} of ${bytes}`);
  assert.equal(stateBytes(run, [0, 1, 2]), 0);
  assert.equal(native.memory().handles, handles - 3 * 9 * 3);
  run.step();
  assert.equal(native.memory().handles, handles - 3 * 9 * 3);
});

test('a step takes memory for the gradients of the layers that train only', (t) => {
  const { native } = currentEngine();
  /** Bytes of all tensors at the peak of a step, more than before it. */
  const peakOf = (run: ReturnType<typeof training>) => {
    const { now } = native.allocated();
    run.step();
    return native.allocated().peak - now;
  };
  using all = training({ policy: 'schedule', rules: [{ freeze: 'embeddings', step: 5 }] }, 8);
  all.step(); // makes the state
  const whole = peakOf(all);
  using one = training({ policy: 'last', layers: 1 }, 8);
  one.step();
  const last = peakOf(one);
  t.diagnostic(`all layers ${(whole / 1e6).toFixed(1)} MB, the last one ${(last / 1e6).toFixed(1)} MB`);
  assert.ok(whole > 4 * layerBytes, String(whole));
  assert.ok(last > layerBytes && last < 1.3 * layerBytes, String(last));
});

test('the forward pass keeps nothing below the lowest layer that trains', (t) => {
  const { native } = currentEngine();
  const rows = [Int32Array.from({ length: 256 }, (_, i) => (i * 11) % 96)];
  /** Bytes that are kept for the backward pass in the first step. */
  const keptOf = (policy: Readonly<Record<string, unknown>>) => {
    using run = training(policy, 4);
    run.begin();
    using _ = scope();
    const { now } = native.allocated();
    run.model.hidden(packTokens(rows));
    return native.allocated().now - now;
  };
  const [whole, two, one] = [
    keptOf({ policy: 'lisa', layers: 4 }),
    keptOf({ policy: 'last', layers: 2 }),
    keptOf({ policy: 'badam', order: 'descending' }),
  ];
  t.diagnostic([whole, two, one].map((bytes) => `${(bytes / 1e6).toFixed(1)} MB`).join(', '));
  assert.ok(two < 0.55 * whole && one < 0.3 * whole, `${whole} ${two} ${one}`);
});

test('handles stay the same from turn to turn, and a layer that comes back begins with its first step', () => {
  const { native } = currentEngine();
  using run = training({ policy: 'badam', every: 2, order: 'fixed', blocks: [1, 2] }, 12);
  const handles = new Set<number>();
  const counts: (number | undefined)[] = [];
  for (let i = 0; i < 7; i++) {
    run.step();
    handles.add(native.memory().handles);
    counts.push(run.optimizer.state.get('0.model.layers.1.mlp.up_proj.weight.step')?.item());
  }
  assert.equal(handles.size, 1, [...handles].join());
  assert.deepEqual(counts, [1, 2, undefined, undefined, 1, 2, undefined]);
});
