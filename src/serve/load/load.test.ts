import assert from 'node:assert/strict';
import test from 'node:test';
import { arrivals } from './plan.ts';
import type { LoadResult } from './run.ts';
import { summarize } from './summary.ts';

const shape = {
  models: Array.from({ length: 50 }, (_, i) => `m${i}`),
  rate: 40,
  seconds: 200,
  zipf: 1.1,
  promptWords: 5,
  maxTokens: 4,
  seed: 3,
};

test('arrivals are a Poisson process, and models follow the law of Zipf', () => {
  const load = arrivals(shape);
  assert.ok(Math.abs(load.length - 8000) < 4 * Math.sqrt(8000), `${load.length} arrivals`);
  const gaps = load.slice(1).map(({ at }, i) => at - load[i]!.at);
  const mean = gaps.reduce((a, b) => a + b) / gaps.length;
  const deviation = Math.sqrt(gaps.reduce((sum, gap) => sum + (gap - mean) ** 2, 0) / gaps.length);
  assert.ok(Math.abs(deviation / mean - 1) < 0.06, 'the gaps are exponential: their deviation is their mean');
  const norm = shape.models.reduce((sum, _, i) => sum + 1 / (i + 1) ** 1.1, 0);
  for (const i of [0, 1, 9]) {
    const expected = load.length / (i + 1) ** 1.1 / norm;
    const got = load.filter(({ model }) => model === `m${i}`).length;
    assert.ok(Math.abs(got - expected) < 5 * Math.sqrt(expected), `m${i}: ${got} of ${expected}`);
  }
  assert.deepEqual(arrivals(shape), load, 'the same seed gives the same');
  assert.notDeepEqual(arrivals({ ...shape, seed: 4 }), load);
  assert.ok(new Set(load.map(({ prompt }) => prompt)).size > 7900 && load[0]!.prompt.split(' ').length === 5);
});

test('a summary counts what failed apart, and percentiles are of the nearest rank', () => {
  const result = (i: number, error?: string): LoadResult => ({
    ...{ model: `m${i % 3}`, status: error ? 429 : 200, error, firstToken: error ? undefined : i / 100 },
    ...{ betweenTokens: undefined, total: i / 10, promptTokens: 2, newTokens: 3 },
  });
  const results = [
    ...Array.from({ length: 100 }, (_, i) => result(i + 1)),
    result(1, 'queue_full'),
    result(2, 'queue_full'),
  ];
  const { timeToFirstToken, timeBetweenTokens, failed, completed, newTokensPerSecond, models } = summarize(results, 10);
  assert.deepEqual(timeToFirstToken, { p50: 0.5, p95: 0.95, p99: 0.99, max: 1 });
  assert.equal(timeBetweenTokens, null);
  assert.deepEqual([failed, completed, newTokensPerSecond, models], [{ queue_full: 2 }, 100, 30, 3]);
});
