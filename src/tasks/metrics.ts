import { randomStream } from '../data/index.ts';

/** A measured number with its 95 % interval, and what it was measured on. */
export interface Metric {
  readonly name: string;
  readonly value: number;
  readonly low: number;
  readonly high: number;
  /** How many things it counts, and what they are. */
  readonly count: number;
  readonly of: 'rows' | 'tokens' | 'entities' | 'labels' | 'questions' | 'pairs';
  /** It is an error, in units of its own: less is better. All others are shares, or from −1 to 1. */
  readonly error?: true;
}

/**
 * A proportion with its 95 % interval (Wilson 1927): right at 0 and 1 too, where the usual one has no width.
 * @returns value, low and high, each between 0 and 1
 */
export function wilson(hits: number, n: number): { value: number; low: number; high: number } {
  const z = 1.959964;
  const p = hits / n;
  const centre = (p + (z * z) / (2 * n)) / (1 + (z * z) / n);
  const half = (z * Math.sqrt((p * (1 - p)) / n + (z * z) / (4 * n * n))) / (1 + (z * z) / n);
  // At 0 and at 1 rounding must not leave the value outside.
  return { value: p, low: Math.min(p, Math.max(0, centre - half)), high: Math.max(p, Math.min(1, centre + half)) };
}

const draws = 1000;

/**
 * Any measure with its 95 % interval by the bootstrap (Efron 1979, percentiles of 1,000 draws with a fixed seed): things
 * are drawn with replacement and measured again. Draws of which the measure says nothing (NaN) are left out.
 * @param measure of the things at these places
 */
export function bootstrap(
  things: number,
  measure: (places: readonly number[]) => number,
): { value: number; low: number; high: number } {
  const value = measure(Array.from({ length: things }, (_, i) => i));
  const random = randomStream(things, 95);
  const drawn = Array.from({ length: draws }, () =>
    measure(Array.from({ length: things }, () => Math.floor(random() * things))),
  )
    .filter((x) => !Number.isNaN(x))
    .sort((a, b) => a - b);
  const at = (share: number) => drawn[Math.round(share * (drawn.length - 1))] ?? value;
  return { value, low: at(0.025), high: at(0.975) };
}

/** Harmonic mean of precision and recall; 0 where both are. */
export const f1 = (hits: number, said: number, wanted: number): number =>
  said + wanted === 0 ? 0 : (2 * hits) / (said + wanted);

/**
 * How often each class was said of each that it is.
 * @returns [wanted][said]
 */
export function confusionOf(
  wanted: readonly number[],
  said: readonly number[],
  classes: number,
  places: readonly number[] = [...wanted.keys()],
): number[][] {
  const counts = Array.from({ length: classes }, () => Array.from({ length: classes }, () => 0));
  for (const i of places) counts[wanted[i]!]![said[i]!]!++;
  return counts;
}

/** Mean of the classes' F1, over the classes that are wanted or said at all (scikit-learn's `macro`). */
export function macroF1(confusion: readonly (readonly number[])[]): number {
  const scores = confusion.flatMap((row, c) => {
    const wanted = row.reduce((a, b) => a + b, 0);
    const said = confusion.reduce((sum, other) => sum + other[c]!, 0);
    return wanted + said === 0 ? [] : [f1(row[c]!, said, wanted)];
  });
  return scores.reduce((a, b) => a + b, 0) / scores.length;
}

/** Pearson's correlation; NaN where one side does not vary. */
export function pearson(x: readonly number[], y: readonly number[]): number {
  const mean = (v: readonly number[]) => v.reduce((a, b) => a + b, 0) / v.length;
  const [mx, my] = [mean(x), mean(y)];
  let [xy, xx, yy] = [0, 0, 0];
  x.forEach((value, i) => {
    const [dx, dy] = [value - mx, y[i]! - my];
    xy += dx * dy;
    xx += dx * dx;
    yy += dy * dy;
  });
  return xy / Math.sqrt(xx * yy);
}

/** Ranks from 1; equals share the mean of theirs. */
function ranks(values: readonly number[]): number[] {
  const order = [...values.keys()].sort((a, b) => values[a]! - values[b]!);
  const out: number[] = [];
  for (let i = 0; i < order.length; ) {
    let end = i;
    while (end < order.length && values[order[end]!] === values[order[i]!]) end++;
    for (let j = i; j < end; j++) out[order[j]!] = (i + end + 1) / 2;
    i = end;
  }
  return out;
}

/** Spearman's rank correlation, ties with mean ranks. */
export const spearman = (x: readonly number[], y: readonly number[]): number => pearson(ranks(x), ranks(y));

/** Several measures of two lists of numbers, with intervals over the same draws' seed. */
export function correlations(wanted: readonly number[], said: readonly number[], of: Metric['of']): Metric[] {
  const at = (places: readonly number[], values: readonly number[]) => places.map((i) => values[i]!);
  const measured = (name: string, measure: (w: readonly number[], s: readonly number[]) => number): Metric => ({
    name,
    ...bootstrap(wanted.length, (places) => measure(at(places, wanted), at(places, said))),
    count: wanted.length,
    of,
  });
  return [measured('pearson', pearson), measured('spearman', spearman)];
}
