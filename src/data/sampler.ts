/**
 * A stream of random numbers in [0, 1) that depends on the seeds only: sfc32 (Doty-Humphrey, PractRand), seeded with each seed
 * in turn and run for 15 numbers after it.
 */
export function randomStream(...seeds: readonly number[]): () => number {
  let [a, b, c, d] = [0x9e3779b9, 0x243f6a88, 0xb7e15162, 1];
  const next = () => {
    const sum = (((a + b) | 0) + d) | 0;
    d = (d + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (c << 21) | (c >>> 11);
    c = (c + sum) | 0;
    return (sum >>> 0) / 2 ** 32;
  };
  for (const seed of seeds) {
    a ^= seed | 0;
    b ^= Math.floor(seed / 2 ** 32) | 0;
    for (let i = 0; i < 15; i++) next();
  }
  return next;
}

/** The numbers from 0 to n − 1 in random order (Fisher and Yates). */
export function shuffled(n: number, random: () => number): number[] {
  const order = Array.from({ length: n }, (_, i) => i);
  for (let i = n - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
}

/**
 * Indices of the rows of an optimizer step. The order of an epoch depends on (seed, epoch) only, so no step needs those before it.
 * @param step from 0
 */
export function rowsOfStep(n: number, batchSize: number, seed: number, step: number): number[] {
  const stepsPerEpoch = Math.ceil(n / batchSize);
  const epoch = Math.floor(step / stepsPerEpoch);
  const first = (step % stepsPerEpoch) * batchSize;
  return orderOfEpoch(n, seed, epoch).slice(first, first + batchSize);
}

let cached: { n: number; seed: number; epoch: number; order: number[] } | undefined;

function orderOfEpoch(n: number, seed: number, epoch: number): number[] {
  if (cached?.n !== n || cached.seed !== seed || cached.epoch !== epoch) {
    cached = { n, seed, epoch, order: shuffled(n, randomStream(seed, epoch, 1)) };
  }
  return cached.order;
}

/**
 * Splits n rows at random into those to train on and those held out; both keep the rows' order.
 * @param amount the share (below 1) or the number of rows to hold out
 * @param keys by row, for a stratified split: each key is held out in proportion, rounded by the largest remainders
 */
export function split(
  n: number,
  amount: number,
  seed: number,
  keys?: readonly unknown[],
): { train: number[]; heldOut: number[] } {
  const count = Math.min(n, amount < 1 ? Math.round(n * amount) : amount);
  const order = shuffled(n, randomStream(seed, 0, 2));
  const heldOut = new Set(keys ? stratified(order, count, keys) : order.slice(0, count));
  const rows = Array.from({ length: n }, (_, i) => i);
  return { train: rows.filter((i) => !heldOut.has(i)), heldOut: rows.filter((i) => heldOut.has(i)) };
}

/** The first rows of `order` for each key, in proportion to the rows of that key: `count` in all. */
function stratified(order: readonly number[], count: number, keys: readonly unknown[]): number[] {
  const groups = [...Map.groupBy(order, (i) => keys[i]).values()];
  const quotas = groups.map((rows, group) => {
    const exact = (rows.length * count) / order.length;
    return { rows, group, count: Math.floor(exact), remainder: exact - Math.floor(exact) };
  });
  const missing = count - quotas.reduce((sum, quota) => sum + quota.count, 0);
  const byRemainder = [...quotas].sort((a, b) => b.remainder - a.remainder || a.group - b.group);
  for (const quota of byRemainder.slice(0, missing)) quota.count++;
  return quotas.flatMap((quota) => quota.rows.slice(0, quota.count));
}
