import assert from 'node:assert/strict';
import test from 'node:test';
import { randomStream, rowsOfStep, shuffled, split } from './index.ts';

const numbers = (n: number) => Array.from({ length: n }, (_, i) => i);

test('a random stream depends on all of its seeds and on nothing else', () => {
  const first = (...seeds: number[]) => Array.from({ length: 4 }, randomStream(...seeds));
  assert.deepEqual(first(1, 2), first(1, 2));
  for (const other of [[2, 1], [1, 3], [1], [1, 2, 0], [1 + 2 ** 32, 2]])
    assert.notDeepEqual(first(...other), first(1, 2));
  const random = randomStream(5);
  const values = Array.from({ length: 10_000 }, random);
  assert.ok(values.every((v) => v >= 0 && v < 1));
  assert.ok(Math.abs(values.reduce((a, b) => a + b) / values.length - 0.5) < 0.02);
});

test('the order is pinned: a recipe gives the same rows in every version', () => {
  assert.deepEqual(shuffled(8, randomStream(0, 0, 1)), [3, 2, 4, 7, 0, 1, 5, 6]);
});

test('an epoch has every row once, in another order for each epoch and seed; a step does not depend on those before it', () => {
  const epoch = (seed: number, at: number) => numbers(4).flatMap((step) => rowsOfStep(13, 4, seed, 4 * at + step));
  for (const at of [0, 1, 7])
    assert.deepEqual(
      epoch(3, at).toSorted((a, b) => a - b),
      numbers(13),
    );
  assert.notDeepEqual(epoch(3, 0), epoch(3, 1));
  assert.notDeepEqual(epoch(3, 0), epoch(4, 0));
  assert.deepEqual(rowsOfStep(13, 4, 3, 4 * 7 + 3), epoch(3, 7).slice(12));
});

test('held-out rows: a share or a number, the same for a seed, in the order of the rows', () => {
  const { train, heldOut } = split(100, 0.2, 1);
  assert.deepEqual([train.length, heldOut.length], [80, 20]);
  assert.deepEqual(
    [...train, ...heldOut].toSorted((a, b) => a - b),
    numbers(100),
  );
  assert.deepEqual(
    heldOut,
    heldOut.toSorted((a, b) => a - b),
  );
  assert.deepEqual(split(100, 20, 1), { train, heldOut });
  assert.notDeepEqual(split(100, 20, 2).heldOut, heldOut);
});

test('with keys, each key is held out in proportion', () => {
  const keys: string[] = numbers(90).map((i) => (i % 9 === 0 ? 'spam' : i % 3 === 0 ? 'ham' : 'other'));
  const { train, heldOut } = split(90, 0.1, 5, keys);
  assert.equal(heldOut.length, 9);
  assert.equal(train.length, 81);
  const counts = Map.groupBy(heldOut, (i) => keys[i]!);
  assert.deepEqual(
    (['spam', 'ham', 'other'] as const).map((key) => counts.get(key)?.length),
    [1, 2, 6],
  );
});
