import { randomStream } from '../data/index.ts';

/** A measured number with its 95 % confidence interval, and what it was measured on. */
export interface Metric {
  /** The name of the metric, such as accuracy or F1. */
  readonly name: string;
  /** The measured number. */
  readonly value: number;
  /** Lower bound of the confidence interval. */
  readonly low: number;
  /** Upper bound of the confidence interval. */
  readonly high: number;
  /** How many items were measured. */
  readonly count: number;
  /** What these items are. */
  readonly of: 'rows' | 'tokens' | 'entities' | 'labels' | 'questions' | 'pairs';
  /** The metric is an error in units of its own: lower is better. All others lie between 0 and 1, or −1 and 1. */
  readonly error?: true;
}

/**
 * A proportion with its 95 % confidence interval (Wilson 1927), which is valid at 0 and 1 too, where the normal approximation
 * has no width.
 * @returns value, low and high, each between 0 and 1
 */
export function wilson(hits: number, n: number): { value: number; low: number; high: number } {
  const z = 1.959964;
  const p = hits / n;
  const centre = (p + (z * z) / (2 * n)) / (1 + (z * z) / n);
  const halfWidth = (z * Math.sqrt((p * (1 - p)) / n + (z * z) / (4 * n * n))) / (1 + (z * z) / n);
  // At 0 and at 1 rounding must not leave the value outside.
  return {
    value: p,
    low: Math.min(p, Math.max(0, centre - halfWidth)),
    high: Math.max(p, Math.min(1, centre + halfWidth)),
  };
}

const RESAMPLES = 1000;

/**
 * Any statistic with its 95 % confidence interval by the bootstrap (Efron 1979; percentiles of 1,000 resamples with a fixed
 * seed). Resamples for which the statistic is NaN are left out.
 * @param n how many items there are
 * @param statistic of the items at these indices, which may repeat
 */
export function bootstrap(
  n: number,
  statistic: (indices: readonly number[]) => number,
): { value: number; low: number; high: number } {
  const value = statistic(Array.from({ length: n }, (_, i) => i));
  const random = randomStream(n, 95);
  const resampled = Array.from({ length: RESAMPLES }, () =>
    statistic(Array.from({ length: n }, () => Math.floor(random() * n))),
  )
    .filter((x) => !Number.isNaN(x))
    .sort((a, b) => a - b);
  const percentile = (share: number) => resampled[Math.round(share * (resampled.length - 1))] ?? value;
  return { value, low: percentile(0.025), high: percentile(0.975) };
}

/** The sum of the losses of a row, and its units. */
export interface RowLoss {
  readonly sum: number;
  readonly units: number;
}

/** The mean loss a unit over rows, with the interval that other rows of the same kind would give. */
export const lossMetric = (rows: readonly RowLoss[]): Metric => ({
  name: 'loss',
  ...bootstrap(rows.length, (indices) => {
    let [sum, units] = [0, 0];
    for (const i of indices) {
      sum += rows[i]!.sum;
      units += rows[i]!.units;
    }
    return sum / units;
  }),
  count: rows.length,
  of: 'rows',
  error: true,
});

/** F1, the harmonic mean of precision and recall; 0 where both are. */
export const f1 = (truePositives: number, predictedCount: number, trueCount: number): number =>
  predictedCount + trueCount === 0 ? 0 : (2 * truePositives) / (predictedCount + trueCount);

/**
 * The confusion matrix of some items.
 * @param indices of the items to count; default: all
 * @returns counts[true class][predicted class]
 */
export function confusionOf(
  trueClasses: readonly number[],
  predictedClasses: readonly number[],
  classCount: number,
  indices: readonly number[] = [...trueClasses.keys()],
): number[][] {
  const counts = Array.from({ length: classCount }, () => Array.from({ length: classCount }, () => 0));
  for (const i of indices) counts[trueClasses[i]!]![predictedClasses[i]!]!++;
  return counts;
}

/** Mean of the classes' F1, over the classes that occur among true or predicted ones (scikit-learn's `macro`). */
export function macroF1(confusion: readonly (readonly number[])[]): number {
  const scores = confusion.flatMap((row, c) => {
    const trueCount = row.reduce((a, b) => a + b, 0);
    const predictedCount = confusion.reduce((sum, other) => sum + other[c]!, 0);
    return trueCount + predictedCount === 0 ? [] : [f1(row[c]!, predictedCount, trueCount)];
  });
  return scores.reduce((a, b) => a + b, 0) / scores.length;
}

/** Pearson's correlation; NaN where one side is constant. */
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

/** Ranks from 1; equal values have the mean of their ranks. */
function ranks(values: readonly number[]): number[] {
  const order = [...values.keys()].sort((a, b) => values[a]! - values[b]!);
  const result: number[] = [];
  for (let i = 0; i < order.length; ) {
    let end = i;
    while (end < order.length && values[order[end]!] === values[order[i]!]) end++;
    for (let j = i; j < end; j++) result[order[j]!] = (i + end + 1) / 2;
    i = end;
  }
  return result;
}

/** Spearman's rank correlation; ties have mean ranks. */
export const spearman = (x: readonly number[], y: readonly number[]): number => pearson(ranks(x), ranks(y));

/** Pearson's and Spearman's correlation of targets and predictions, with intervals over the same resamples. */
export function correlations(targets: readonly number[], predictions: readonly number[], of: Metric['of']): Metric[] {
  const pick = (values: readonly number[], indices: readonly number[]) => indices.map((i) => values[i]!);
  const metric = (name: string, correlation: (x: readonly number[], y: readonly number[]) => number): Metric => ({
    name,
    ...bootstrap(targets.length, (indices) => correlation(pick(targets, indices), pick(predictions, indices))),
    count: targets.length,
    of,
  });
  return [metric('pearson', pearson), metric('spearman', spearman)];
}
