/** What processes that share out a model's weights hold, read and send, against the plan (ZeRO stage 3). */
import assert from 'node:assert/strict';
import { statSync } from 'node:fs';
import { join } from 'node:path';
import test, { after } from 'node:test';
import { randomLlama } from '../../test/samples/llama.ts';
import { runRanks } from '../../test/samples/ranks.ts';
import { temporary } from '../../test/support.ts';
import { startEngine } from '../engine/index.ts';
import { clusterPlan } from './cluster-plan.ts';
import { plannedFromSketch } from './planned-model.ts';
import { parseRecipe } from './recipe.ts';
import { openTaskModels } from './task-models.ts';

await startEngine();
const dir = temporary();
after(() => dir[Symbol.dispose]());
const sizes = { layers: 6, width: 256, inner: 768, heads: 4, vocab: 2000 };
const common = randomLlama(join(dir.path, 'model'), { ...sizes, dtype: 'bfloat16' });
/** The table is more than half of it, which whole tensors could not be divided by. */
const wide = { ...sizes, layers: 3, vocab: 10_000, tied: true };
const table = randomLlama(join(dir.path, 'table'), { ...wide, dtype: 'bfloat16' });
/** The reader's buffer (models/weight-reader.ts). */
const readBuffer = 2 ** 23;
const lora = { type: 'lora', r: 8, target_modules: 'all-linear' };

const cases: readonly (readonly [name: string, fields: object, model: string, checkpointed: boolean])[] = [
  ['lora', { method: lora }, common, false],
  ['lora on nf4, checkpointed', { method: lora, quantize: 'nf4' }, common, true],
  ['full', { method: { type: 'full' } }, table, false],
  ['full, checkpointed', { method: { type: 'full' } }, table, true],
];

let compared = 0;
for (const [name, fields, model, checkpointed] of cases) {
  const fileBytes = statSync(join(model, 'model.safetensors')).size;
  const largestMatrix = 4 * (model === table ? wide : sizes).vocab * sizes.width;
  for (const size of [2, 4]) {
    test(`${name}, ${size} processes: what each holds, reads and sends is what the plan says`, async (t) => {
      const recipe = parseRecipe({ model, data: { train: 'none' }, run: { dir: 'none' }, ...fields });
      using sketch = openTaskModels(recipe, model, [{ name: undefined, head: {} }], true);
      const planned = plannedFromSketch(recipe, sketch);
      const run = { ranks: size, rows: size, rowTokens: 16, microTokens: 16, checkpointed, memory: 1e12 };
      const plan = clusterPlan(planned, run).stages[3]!;

      const block = Math.max(
        ...planned.units
          .slice(1, -1)
          .map(({ frozenBytes, trained }) => frozenBytes + 4 * trained.reduce((a, b) => a + b, 0)),
      );
      const env = Object.fromEntries(
        Array.from({ length: size }, (_, rank) => [
          rank,
          { MODEL: model, FIELDS: JSON.stringify(fields), CHECKPOINTED: `${checkpointed}` },
        ]),
      );
      const outcomes = await runRanks('sharedOut', 0, { size, env });
      const within = (got: number, want: number, share: number, what: string) =>
        assert.ok(Math.abs(got / want - 1) <= share, `${what}: ${got}, and the plan says ${want}`);
      for (const { value, error } of outcomes) {
        assert.equal(error, undefined);
        const { losses, loadPeak, loaded, read, kept, peak, sent } = value as Record<string, number>;
        assert.deepEqual(losses, outcomes[0]!.value!.losses);
        within(loaded!, plan.weightBytes, 0.05, 'weights');
        within(kept!, plan.weightBytes + plan.optimizerBytes, 0.05, 'weights and optimizer');
        // Threads of the network may still hold the block before.
        const held = peak! > 1.1 * plan.totalBytes ? block : 0;
        within(peak! - held, plan.totalBytes, 0.12, 'the peak of a step');
        within(sent!, plan.trafficBytes, model === table ? 0.06 : 0.02, 'bytes sent');
        // While it is loaded: a share, a buffer, and what was read of one matrix.
        assert.ok(loadPeak! < plan.weightBytes + readBuffer + 1.1 * largestMatrix, `${loadPeak} bytes while loading`);
        assert.ok(read! < (1.05 * fileBytes) / size, `${read} of ${fileBytes} bytes were read`);
        t.diagnostic(`${JSON.stringify(value)}, planned ${JSON.stringify(plan)}`);
      }
      const all = outcomes.reduce((sum, { value }) => sum + Number(value!.sent), 0);
      within(all, size * plan.trafficBytes, 0.02, 'bytes sent by all');
      compared++;
    });
  }
}
test('all were compared', () => assert.equal(compared, 8));
