import assert from 'node:assert/strict';
import test from 'node:test';
import { runRanks } from '../../test/samples/ranks.ts';

for (const [size, stage] of [
  [2, 0],
  [2, 1],
  [3, 1],
] as const) {
  test(`stage ${stage} with ${size} processes: sums, norm, updates, shares and traffic`, async () => {
    const outcomes = await runRanks('shard', stage, { size });
    const ranks = Array.from({ length: size }, (_, rank) => rank + 1).reduce((a, b) => a + b);
    const sums = [ranks, 2 * ranks, 3 * ranks, 4 * ranks, 10, 0];
    const counts = [700_000, 4_300_000, 31, 250_000, 9, 64];
    const norm = Math.sqrt(counts.reduce((sum, count, i) => sum + count * sums[i]! ** 2, 0));
    let owned = 0;
    let sent = 0;
    for (const { value, error } of outcomes) {
      assert.equal(error, undefined);
      assert.deepEqual(
        value!.values,
        sums.map((sum) => [sum]),
      );
      assert.ok(Math.abs(Number(value!.norm) / norm - 1) < 1e-5, `${value!.norm}, expected ${norm}`);
      owned += Number(value!.owned);
      sent += Number(value!.sent);
    }
    // Stage 0: all have all. Stage 1: each parameter is updated by one process.
    const numbers = Number(outcomes[0]!.value!.numbers);
    assert.equal(owned, stage === 0 ? size * numbers : numbers);
    const volume = 2 * (size - 1) * 4 * numbers;
    assert.ok(Math.abs(sent / volume - 1) < 0.02, `${sent} bytes were sent, and the formula says ${volume}`);
    assert.equal(outcomes.length, size);
  });
}
