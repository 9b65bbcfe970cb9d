import assert from 'node:assert/strict';
import test from 'node:test';
import { holm, mcnemarExact, type Outcome, pairedTests } from './index.ts';

const near = (got: number, want: number) => assert.ok(Math.abs(got / want - 1) < 1e-9, `${got} against ${want}`);

test('McNemar: values that are known', () => {
  // statsmodels 0.14, mcnemar([[101, 121], [59, 33]], exact=True); the others by hand from the binomial distribution.
  near(mcnemarExact(121, 59), 4.434449263755176e-6);
  near(mcnemarExact(5, 0), 2 / 2 ** 5);
  near(mcnemarExact(1, 9), (2 * (1 + 10)) / 2 ** 10);
  near(mcnemarExact(20, 10), 0.09873714670538902);
  near(mcnemarExact(3, 1), (2 * (1 + 4)) / 2 ** 4);
});

test('McNemar: both sides alike, no rows that differ, and more of them than a double can count', () => {
  assert.equal(mcnemarExact(0, 0), 1);
  assert.equal(mcnemarExact(6, 6), 1);
  assert.equal(mcnemarExact(0, 1), 1);
  near(mcnemarExact(2, 11), mcnemarExact(11, 2));
  near(mcnemarExact(2200, 2000), 0.0021323556719912346);
});

test('Holm: p-values of its step-down method, in their order', () => {
  assert.deepEqual(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02]);
  assert.deepEqual(holm([0.6, 0.7]), [1, 1]);
  assert.deepEqual(holm([]), []);
});

const outcome = (name: string, hits: string | undefined, rows = 'abc'): Outcome =>
  ({ name, rows, ...(hits !== undefined && { hits }) }) as Outcome;

test('a leader is tested against every other method, with the rows that only one of the two gets right', () => {
  const leader = '1'.repeat(30);
  const close = `${'1'.repeat(27)}000`;
  const far = '1'.repeat(10).padEnd(30, '0');
  const { pairs, tests, ...verdict } = pairedTests([outcome('a', leader), outcome('b', close), outcome('c', far)])!;
  assert.deepEqual([verdict.leader, pairs], ['a', 3]);
  assert.deepEqual(
    tests.map(({ p: _, ...rest }) => rest),
    [
      { name: 'b', onlyLeader: 3, onlyThis: 0, worse: false },
      { name: 'c', onlyLeader: 20, onlyThis: 0, worse: true },
    ],
  );
  near(tests[0]!.p, mcnemarExact(3, 0));
  near(tests[1]!.p, 3 * mcnemarExact(20, 0));
});

test('no test of one method, without hits, of other rows, or of another number of rows', () => {
  assert.equal(pairedTests([outcome('a', '11')]), undefined);
  assert.equal(pairedTests([outcome('a', '11'), outcome('b', undefined)]), undefined);
  assert.equal(pairedTests([outcome('a', '11'), outcome('b', '10', 'def')]), undefined);
  assert.equal(pairedTests([outcome('a', '11'), outcome('b', '101')]), undefined);
});
