/** Paired tests between methods that were measured on the same rows: which differences are more than chance. */
import type { Outcome } from './results.ts';

/**
 * Returns the two-sided p-value of McNemar's exact test (McNemar 1947; the binomial form): of the rows that only one of two
 * methods gets right, how likely is a split as uneven as this if each method were as likely to win such a row?
 * @param onlyFirst rows that only the first method gets right
 * @param onlySecond rows that only the second one gets right
 */
export function mcnemarExact(onlyFirst: number, onlySecond: number): number {
  const n = onlyFirst + onlySecond;
  // The terms C(n, k) / 2ⁿ as logarithms: 2ⁿ is beyond a double from n = 1,024 on.
  let logTerm = -n * Math.LN2;
  let tail = Math.exp(logTerm);
  for (let k = 1; k <= Math.min(onlyFirst, onlySecond); k++) {
    logTerm += Math.log((n - k + 1) / k);
    tail += Math.exp(logTerm);
  }
  return Math.min(1, 2 * tail);
}

/**
 * Returns p-values adjusted by Holm's step-down method (Holm 1979), in the order of the given ones: compared with 0.05, the chance
 * that any difference is reported that is not there is at most 5 % over all tests together.
 */
export function holm(pValues: readonly number[]): number[] {
  const adjusted = pValues.map(() => 0);
  let largest = 0;
  const ascending = [...pValues.keys()].sort((a, b) => pValues[a]! - pValues[b]!);
  for (const [rank, i] of ascending.entries()) {
    largest = Math.max(largest, Math.min(1, (pValues.length - rank) * pValues[i]!));
    adjusted[i] = largest;
  }
  return adjusted;
}

/** A method beside the one with the highest value. */
export interface PairedTest {
  readonly name: string;
  /** Rows that only the leader gets right. */
  readonly onlyLeader: number;
  /** Rows that only this method gets right. */
  readonly onlyThis: number;
  /** Adjusted by Holm's method over all pairs of methods. */
  readonly p: number;
  /** p is below 0.05: the leader is better. */
  readonly worse: boolean;
}

/** What paired tests say about the leader, the method with the highest value. */
export interface Verdict {
  readonly leader: string;
  readonly tests: readonly PairedTest[];
  /** How many pairs of methods the p-values are adjusted for. */
  readonly pairs: number;
}

/** Every method's hits are there, and of the same rows. */
const comparable = (outcomes: readonly Outcome[]): boolean =>
  outcomes.every(
    ({ hits, rows }) => hits !== undefined && hits.length === outcomes[0]!.hits?.length && rows === outcomes[0]!.rows,
  );

/**
 * Tests every pair of methods. p-values are adjusted over all pairs, and not only over those with the leader, because the leader
 * is chosen by the same rows.
 * @param bestFirst outcomes by their value, the highest first
 * @returns undefined for a single method, and where hits are missing or of other rows
 */
export function pairedTests(bestFirst: readonly Outcome[]): Verdict | undefined {
  if (bestFirst.length < 2 || !comparable(bestFirst)) return undefined;
  const pairs = bestFirst.flatMap((first, i) =>
    bestFirst.slice(i + 1).map((second) => {
      const counts = discordant(first.hits!, second.hits!);
      return { first, second, ...counts, p: mcnemarExact(counts.onlyFirst, counts.onlySecond) };
    }),
  );
  const adjusted = holm(pairs.map(({ p }) => p));
  const [leader] = bestFirst as [Outcome];
  return {
    leader: leader.name,
    pairs: pairs.length,
    tests: pairs.flatMap(({ first, second, onlyFirst, onlySecond }, i) => {
      const p = adjusted[i]!;
      if (first !== leader) return [];
      return [{ name: second.name, onlyLeader: onlyFirst, onlyThis: onlySecond, p, worse: p < 0.05 }];
    }),
  };
}

function discordant(first: string, second: string): { onlyFirst: number; onlySecond: number } {
  let [onlyFirst, onlySecond] = [0, 0];
  for (let i = 0; i < first.length; i++) {
    if (first[i] === second[i]) continue;
    if (first[i] === '1') onlyFirst++;
    else onlySecond++;
  }
  return { onlyFirst, onlySecond };
}
