/**
 * A proportion with its 95 % interval (Wilson 1927): right at 0 and 1 too, where the usual one has no width.
 * @returns value, low and high, each between 0 and 1
 */
export function wilson(hits: number, n: number): { value: number; low: number; high: number } {
  const z = 1.959964;
  const p = hits / n;
  const centre = (p + (z * z) / (2 * n)) / (1 + (z * z) / n);
  const half = (z * Math.sqrt((p * (1 - p)) / n + (z * z) / (4 * n * n))) / (1 + (z * z) / n);
  return { value: p, low: Math.max(0, centre - half), high: Math.min(1, centre + half) };
}
