/** Full fine-tuning by recipe with each optimizer: the losses of twenty steps are those of its reference implementation. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { parseRecipe, runTraining } from '../../src/train/index.ts';
import { golden, temporary } from '../support.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
});

interface Losses {
  readonly model: string;
  readonly batches: string;
  readonly runs: Readonly<
    Record<string, { readonly recipe: object; readonly loss: readonly number[]; readonly tolerance: number }>
  >;
}

test('twenty losses of a tied model with each optimizer, and with a rate for each layer', async (t) => {
  const { model, batches, runs }: Losses = JSON.parse(readFileSync(golden('optimizer', 'losses.json'), 'utf8'));
  let compared = 0;
  for (const [name, { recipe, loss, tolerance }] of Object.entries(runs)) {
    using dir = temporary();
    const { losses } = await runTraining(
      {
        recipe: parseRecipe({
          model: golden(model),
          method: { type: 'full' },
          data: { train: golden(batches), format: 'batches' },
          train: { ...recipe, threads: 1 },
          run: { dir: join(dir.path, 'run') },
        }),
      },
      () => {},
    );
    const errors = loss.map((wanted, i) => Math.abs(losses[i]! / wanted - 1));
    const worst = Math.max(...errors);
    t.diagnostic(`${name}: at most ${worst.toExponential(1)}`);
    assert.ok(worst <= tolerance, `${name}: a loss differs by ${worst}`);
    compared += errors.length;
  }
  assert.equal(compared, 7 * 20);
});
