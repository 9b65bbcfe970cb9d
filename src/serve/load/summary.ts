import type { LoadResult } from './run.ts';

/** Seconds: the median, and what 95 and 99 of 100 requests stay below. */
export interface Percentiles {
  readonly p50: number;
  readonly p95: number;
  readonly p99: number;
  readonly max: number;
}

/** What a load came to. */
export interface LoadSummary {
  readonly requests: number;
  /** Answered whole. */
  readonly completed: number;
  /** How many failed, by the code of the error. */
  readonly failed: Readonly<Record<string, number>>;
  /** From the first request that was due to the last end. */
  readonly seconds: number;
  readonly requestsPerSecond: number;
  readonly promptTokensPerSecond: number;
  readonly newTokensPerSecond: number;
  readonly timeToFirstToken: Percentiles | null;
  readonly timeBetweenTokens: Percentiles | null;
  readonly timeToEnd: Percentiles | null;
  /** Models that were asked for. */
  readonly models: number;
}

/** The value that a share of all stays at or below, by the nearest rank. */
const percentile = (sorted: readonly number[], share: number): number =>
  sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)]!;

function percentiles(values: readonly (number | undefined)[]): Percentiles | null {
  const sorted = values.filter((value) => value !== undefined).sort((a, b) => a - b);
  if (sorted.length === 0) return null;
  const at = (share: number) => +percentile(sorted, share).toPrecision(4);
  return { p50: at(0.5), p95: at(0.95), p99: at(0.99), max: at(1) };
}

/** @param seconds from the beginning of the load to its end */
export function summarize(results: readonly LoadResult[], seconds: number): LoadSummary {
  const whole = results.filter(({ error, status }) => error === undefined && status === 200);
  const failed: Record<string, number> = {};
  for (const { error, status } of results)
    if (error !== undefined || status !== 200)
      failed[error ?? `status ${status}`] = (failed[error ?? `status ${status}`] ?? 0) + 1;
  const rate = (sum: number) => +(sum / seconds).toPrecision(4);
  const sum = (of: 'promptTokens' | 'newTokens') => whole.reduce((total, result) => total + result[of], 0);
  return {
    requests: results.length,
    completed: whole.length,
    failed,
    seconds: +seconds.toPrecision(4),
    requestsPerSecond: rate(whole.length),
    promptTokensPerSecond: rate(sum('promptTokens')),
    newTokensPerSecond: rate(sum('newTokens')),
    timeToFirstToken: percentiles(whole.map(({ firstToken }) => firstToken)),
    timeBetweenTokens: percentiles(whole.map(({ betweenTokens }) => betweenTokens)),
    timeToEnd: percentiles(whole.map(({ total }) => total)),
    models: new Set(results.map(({ model }) => model)).size,
  };
}
