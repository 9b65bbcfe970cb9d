/**
 * Random numbers whose stream depends on nothing but the seeds: sfc32 (Doty-Humphrey, PractRand), seeded with the parts
 * and warmed up.
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

/** The numbers below n in random order (Fisher and Yates). */
export function shuffled(n: number, random: () => number): number[] {
  const order = Array.from({ length: n }, (_, i) => i);
  for (let i = n - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
}

/** Rows of optimizer step `step`: each epoch is a new order that depends on (seed, epoch) only, so any step can be had at once. */
export function rowsOfStep(n: number, batchSize: number, seed: number, step: number): number[] {
  const perEpoch = Math.ceil(n / batchSize);
  const epoch = Math.floor(step / perEpoch);
  const at = (step % perEpoch) * batchSize;
  return order(n, seed, epoch).slice(at, at + batchSize);
}

let remembered: { n: number; seed: number; epoch: number; order: number[] } | undefined;

function order(n: number, seed: number, epoch: number): number[] {
  if (remembered?.n !== n || remembered.seed !== seed || remembered.epoch !== epoch) {
    remembered = { n, seed, epoch, order: shuffled(n, randomStream(seed, epoch, 1)) };
  }
  return remembered.order;
}

/**
 * Which of n rows are held out. Both parts keep the rows' order.
 * @param amount a share (below 1) or a number of rows
 * @param keys one of each row: rows of every key are held out in proportion (the largest remainders get what is left over)
 */
export function split(
  n: number,
  amount: number,
  seed: number,
  keys?: readonly unknown[],
): { train: number[]; heldOut: number[] } {
  const count = Math.min(n, amount < 1 ? Math.round(n * amount) : amount);
  const order = shuffled(n, randomStream(seed, 0, 2));
  const chosen = new Set(keys ? inProportion(order, count, keys) : order.slice(0, count));
  const all = Array.from({ length: n }, (_, i) => i);
  return { train: all.filter((i) => !chosen.has(i)), heldOut: all.filter((i) => chosen.has(i)) };
}

function inProportion(order: readonly number[], count: number, keys: readonly unknown[]): number[] {
  const groups = [...Map.groupBy(order, (i) => keys[i]).values()];
  const shares = groups.map((rows, g) => {
    const exact = (rows.length * count) / order.length;
    return { rows, g, take: Math.floor(exact), rest: exact - Math.floor(exact) };
  });
  const missing = count - shares.reduce((sum, { take }) => sum + take, 0);
  const byRest = [...shares].sort((a, b) => b.rest - a.rest || a.g - b.g);
  for (const share of byRest.slice(0, missing)) share.take++;
  return shares.flatMap(({ rows, take }) => rows.slice(0, take));
}
