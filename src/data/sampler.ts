/**
 * Random numbers whose stream depends on nothing but the seeds: sfc32 (Doty-Humphrey, PractRand), seeded with the parts
 * and warmed up.
 */
export function stream(...seeds: readonly number[]): () => number {
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
    remembered = { n, seed, epoch, order: shuffled(n, stream(seed, epoch, 1)) };
  }
  return remembered.order;
}

/** Which of n rows are held out: `amount` is a share (below 1) or a number. Both parts keep the rows' order. */
export function split(n: number, amount: number, seed: number): { train: number[]; heldOut: number[] } {
  const count = Math.min(n, amount < 1 ? Math.round(n * amount) : amount);
  const chosen = new Set(shuffled(n, stream(seed, 0, 2)).slice(0, count));
  const all = Array.from({ length: n }, (_, i) => i);
  return { train: all.filter((i) => !chosen.has(i)), heldOut: all.filter((i) => chosen.has(i)) };
}
