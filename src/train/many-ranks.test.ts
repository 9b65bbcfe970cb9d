/** The collectives of a step of 64 and of 1,024 processes, counted, against the plan: the real step runs over a group of which one is there. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import test, { after } from 'node:test';
import { countingGroup } from '../../test/samples/counting-group.ts';
import { randomLlama } from '../../test/samples/llama.ts';
import { temporary } from '../../test/support.ts';
import { pack } from '../data/index.ts';
import { startEngine } from '../engine/index.ts';
import { LaterWeights } from '../models/index.ts';
import { useGates } from '../nn/index.ts';
import { scope } from '../tensor/index.ts';
import { optimizerFor } from './attach.ts';
import { clusterPlan, type Stage } from './cluster-plan.ts';
import { ownersOf } from './owners.ts';
import { plannedFromSketch } from './planned-model.ts';
import { parseRecipe, type Recipe } from './recipe.ts';
import { gatheredSharding, shardingOf } from './sharding.ts';
import { shareOut } from './shared-out.ts';
import { batchLoss, trainStep } from './step.ts';
import { openTaskModels } from './task-models.ts';

await startEngine();
const dir = temporary();
after(() => dir[Symbol.dispose]());
const model = randomLlama(join(dir.path, 'model'), { layers: 2, width: 256, inner: 768, heads: 4, vocab: 4000 });
const tasks = [{ name: undefined, head: {} }];

/** Bytes that one process of many sends in a step of two rows for each. */
function sentBy(rank: number, size: number, stage: Stage, recipe: Recipe): number {
  const group = countingGroup(rank, size);
  using later = new LaterWeights();
  using models = openTaskModels(recipe, model, tasks, false, stage === 3 ? later : undefined);
  const { host, adapter, parameters } = models;
  const sharding =
    stage === 3
      ? gatheredSharding(group, parameters, shareOut(group, models, later, true), false)
      : shardingOf(group, parameters, stage, false);
  using optimizer = optimizerFor(models, recipe, sharding.owned);
  using _gates = sharding.gates && useGates(sharding.gates);
  const row = (i: number) => {
    const ids = Int32Array.from({ length: 4 }, (_, t) => 3 + ((31 * i + 7 * t) % 90));
    return { ids, labels: ids, place: 'test' };
  };
  const batches = Array.from({ length: 2 * size }, (_, i) => pack([row(i)]));
  const before = group.traffic.sent;
  const common = { model: host, parameters, optimizer, adapter, sharding, batches, lr: 0, maxGradNorm: undefined };
  trainStep({ ...common, seed: 1, step: 0 });
  return group.traffic.sent - before;
}

let simulated = 0;
for (const size of [64, 1024])
  for (const [name, method] of Object.entries({
    lora: { type: 'lora', r: 64, target_modules: 'all-linear' },
    full: { type: 'full' },
  }))
    test(`${name}, ${size} processes: what they send in a step is what the plan says, at every stage`, () => {
      const recipe = parseRecipe({ model, method, data: { train: 'none' }, run: { dir: 'none' } });
      using sketch = openTaskModels(recipe, model, tasks, true);
      const run = { ranks: size, rows: 2 * size, rowTokens: 4, microTokens: 4, checkpointed: false, memory: 1e12 };
      const plan = clusterPlan(plannedFromSketch(recipe, sketch), run);
      // Processes that own nothing do all the same.
      const owners = new Set(ownersOf(sketch.parameters, size).values());
      const simulatedRanks = [...owners].sort((a, b) => a - b);
      const idle = size - owners.size;
      if (idle > 0) simulatedRanks.push(size - 1);
      assert.equal(owners.has(size - 1), idle === 0);
      for (const stage of [0, 1, 2, 3] as const) {
        // At stage 0 all do the same.
        const ranks = stage === 0 ? [0] : simulatedRanks;
        const sent = ranks.map((rank) => sentBy(rank, size, stage, recipe));
        const all =
          stage === 0
            ? size * sent[0]!
            : sent.reduce((sum, bytes, i) => sum + bytes * (idle > 0 && i === sent.length - 1 ? idle : 1), 0);
        const planned = size * plan.stages[stage]!.trafficBytes;
        assert.ok(Math.abs(all / planned - 1) < 0.02, `stage ${stage}: ${all} bytes, and the plan says ${planned}`);
        simulated++;
      }
    });
test('stage 2: when a backward pass ends, at most an eighth of the gradients of LoRA is not on its way yet', () => {
  const method = { type: 'lora', r: 64, target_modules: 'all-linear' };
  const recipe = parseRecipe({ model, method, data: { train: 'none' }, run: { dir: 'none' } });
  using models = openTaskModels(recipe, model, tasks, false);
  const group = countingGroup(0, 2);
  const sharding = shardingOf(group, models.parameters, 2, false);
  const ids = Int32Array.of(3, 4, 5, 6);
  let sent = 0;
  sharding.during(() => {
    using _ = scope();
    batchLoss(models.host, pack([{ ids, labels: ids, place: 'test' }])).backward();
    sent = group.traffic.sent;
  });
  const all = group.traffic.sent;
  assert.ok(all > 1e6, `${all} bytes`);
  assert.ok(1 - sent / all <= 1 / 8, `${sent} of ${all} bytes`);
});
test('all were simulated', () => assert.equal(simulated, 16));
