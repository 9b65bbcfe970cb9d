import assert from 'node:assert/strict';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { temporary } from '../../test/support.ts';
import { startEngine } from '../engine/index.ts';
import { createOptimizer } from '../optim/index.ts';
import { noGrad, ops, scope, type Tensor } from '../tensor/index.ts';
import { lastCheckpoint, type RunState, restoreOptimizer, restoreParameters, saveCheckpoint } from './checkpoints.ts';

before(async () => {
  await startEngine();
});

const state: RunState = { step: 3, end: { recipe: 9, steps: 9 }, best: null, stale: 0, heldOut: null };
const mebibyte = 2 ** 20;

/** Eight parameters of 16 MiB with numbers of their own, and their optimizer. */
function trained(value: number) {
  const parameters = new Map<string, Tensor>();
  noGrad(() => {
    for (let i = 0; i < 8; i++) {
      const tensor = ops.addScalar(ops.ones([2048, 2048]), value + i);
      tensor.requiresGrad = true;
      parameters.set(`p${i}`, tensor);
    }
  });
  const optimizer = createOptimizer({ type: 'adamw' }, parameters);
  optimizer.prepare([...parameters.keys()].map((key) => `${key}.step`));
  for (const tensor of optimizer.state.values()) noGrad(() => ops.fill_(tensor, value));
  return { parameters, optimizer };
}

test('a checkpoint is restored in place: no second copy of the parameters and moments is made', (t) => {
  using _ = scope();
  using dir = temporary();
  const saved = trained(1);
  saveCheckpoint(dir.path, state, saved.parameters, saved.optimizer, 2);
  const bytes = [...saved.parameters.values(), ...saved.optimizer.state.values()].reduce((sum, x) => sum + x.nbytes, 0);
  const resumed = trained(7);
  const before = process.memoryUsage.rss();
  const { path } = lastCheckpoint(dir.path)!;
  restoreParameters(path, resumed.parameters);
  restoreOptimizer(path, resumed.optimizer);
  const grown = process.memoryUsage.rss() - before;
  t.diagnostic(`${bytes / mebibyte} MiB restored, resident memory grew by ${(grown / mebibyte).toFixed(1)} MiB`);
  assert.ok(grown < bytes / 8, `${grown / mebibyte} MiB`);
  for (const [key, tensor] of saved.parameters)
    assert.ok(ops.equal(tensor, resumed.parameters.get(key)!), `${key} is restored`);
  assert.equal(resumed.optimizer.state.get('p0.exp_avg')!.data()[5], 1);
  for (const { optimizer } of [saved, resumed]) optimizer[Symbol.dispose]();
  rmSync(join(dir.path, 'step-0000003'), { recursive: true });
});
