import assert from 'node:assert/strict';
import test from 'node:test';
import { runRanks } from '../../test/samples/ranks.ts';

for (const [size, stage] of [
  [2, 0],
  [2, 1],
  [3, 1],
  [2, 2],
  [3, 2],
] as const) {
  test(`stage ${stage} with ${size} processes: sums, norms, updates, shares and traffic of two backward passes`, async () => {
    const outcomes = await runRanks('shard', stage, { size });
    // Rank 0 has 10 more in its second pass. Parameter 4 has a gradient on rank 1 only, parameter 5 nowhere.
    const factor = Array.from({ length: size }, (_, rank) => rank + 1).reduce((a, b) => a + b) + 10;
    const sums = [factor, 2 * factor, 3 * factor, 4 * factor, 10, 0];
    const counts = [700_000, 4_300_000, 31, 250_000, 9, 64];
    const norms = counts.map((count, i) => Math.sqrt(count) * sums[i]!);
    const close = (got: unknown, want: number, error = 1e-5) =>
      assert.ok(Math.abs(Number(got) / want - 1) < error, `${got}, expected ${want}`);
    let owned = 0;
    let sent = 0;
    for (const { value, error } of outcomes) {
      assert.equal(error, undefined);
      assert.deepEqual(
        value!.values,
        sums.map((sum) => [sum]),
      );
      close(value!.norm, Math.hypot(...norms));
      const [second, fifth, sixth, three] = value!.gradNorms as (number | null)[];
      close(second, norms[1]!, 5e-3); // LibTorch adds up millions of squares in float32
      close(fifth, norms[4]!);
      assert.equal(sixth, null);
      close(three, Math.hypot(norms[1]!, norms[4]!), 5e-3);
      assert.equal(value!.elsewhere, 0);
      owned += Number(value!.owned);
      sent += Number(value!.sent);
    }
    // Stage 0: all have all. Stage 1 and 2: each parameter is updated by one process.
    const numbers = Number(outcomes[0]!.value!.numbers);
    assert.equal(owned, stage === 0 ? size * numbers : numbers);
    // Stage 2 sends the gradients of each pass.
    const volume = (stage === 2 ? 3 : 2) * (size - 1) * 4 * numbers;
    assert.ok(Math.abs(sent / volume - 1) < 0.02, `${sent} bytes were sent, and the formula says ${volume}`);
    assert.equal(outcomes.length, size);
  });
}

for (const size of [2, 4]) {
  test(`stage 2 with ${size} processes: gradients take a process 4Ψ/${size} bytes and three buckets at most, updates three buckets, and 2Ψ travels`, async (t) => {
    const bucket = 4 * (4 << 20);
    const [whole, shared] = [await runRanks('layers', 1, { size }), await runRanks('layers', 2, { size })];
    for (const [rank, { value, error }] of shared.entries()) {
      assert.equal(error, undefined);
      const { peak, after, ofUpdates, sent, bytes } = value as Record<string, number>;
      t.diagnostic(
        `rank ${rank}: ${peak! / 2 ** 20} MiB at the peak, ${after! / 2 ** 20} MiB after the pass; stage 1 ${Number(whole[rank]!.value!.peak) / 2 ** 20} MiB`,
      );
      const within = (got: number, want: number, share: number, what: string) =>
        assert.ok(Math.abs(got / want - 1) < share, `${what}: ${got}, expected ${want}`);
      within(after!, bytes! / size, 0.05, 'gradients after the pass');
      // Besides, one bucket is sent and received; the network's threads may still hold one.
      assert.ok(peak! < 1.05 * (bytes! / size + 3 * bucket), `peak of the gradients: ${peak}`);
      within(sent!, (2 * (size - 1) * bytes!) / size, 0.02, 'bytes sent');
      assert.ok(ofUpdates! < 3.05 * bucket, `buffers of the updates: ${ofUpdates}`);
      // Stage 1 has all gradients once, and sends them as stage 2 does.
      const atStage1 = Number(whole[rank]!.value!.peak);
      assert.ok(atStage1 >= bytes! && atStage1 < 1.05 * (bytes! + 3 * bucket), `peak at stage 1: ${atStage1}`);
    }
    assert.equal(shared.length, size);
  });
}

test('stage 2 refuses a second gradient in a pass, with what to use', async () => {
  const outcomes = await runRanks('twice', 2, { size: 2 });
  const refused = outcomes.filter(({ error }) =>
    /weight gets a second gradient in a backward pass, after the first was sent.*gradient_checkpointing: false.*stage: 1/.test(
      error!.message,
    ),
  );
  assert.equal(refused.length, 2);
});
