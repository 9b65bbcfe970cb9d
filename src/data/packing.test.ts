import assert from 'node:assert/strict';
import test from 'node:test';
import { microBatches, pack, type Row, randomStream, shuffled } from './index.ts';

const row = (ids: number[], labels: number[] = ids): Row => ({
  ids: Int32Array.from(ids),
  labels: Int32Array.from(labels),
  place: 'test',
});
const long = (n: number): Row => row(Array.from({ length: n }, (_, i) => i));

test('rows are packed end to end; a target is the label of the next token of the same row', () => {
  const packed = pack([row([5, 6, 7], [-100, 6, 7]), row([8]), row([9, 10], [9, -100]), row([1, 2])]);
  assert.deepEqual([...packed.ids], [5, 6, 7, 8, 9, 10, 1, 2]);
  assert.deepEqual([...packed.targets], [6, 7, -100, -100, -100, -100, 2, -100]);
  assert.deepEqual([...packed.positions], [0, 1, 2, 0, 0, 1, 0, 1]);
  assert.deepEqual([...packed.rowStarts], [0, 3, 4, 6, 8]);
  assert.equal(packed.predicted, 3);
});

test('no rows are an empty batch', () => {
  const packed = pack([]);
  assert.deepEqual([packed.ids.length, [...packed.rowStarts], packed.predicted], [0, [0], 0]);
});

const lengths = (batches: Row[][]) => batches.map((rows) => rows.map(({ ids }) => ids.length));
const tokens = (rows: Row[]) => rows.reduce((sum, { ids }) => sum + ids.length, 0);

test('as few micro-batches as the budget allows, filled evenly', () => {
  assert.deepEqual(lengths(microBatches([40, 40, 40].map(long), 120)), [[40, 40, 40]]);
  const two = microBatches([60, 50, 40, 30, 20].map(long), 150).map(tokens);
  assert.equal(two.length, 2);
  assert.ok(Math.abs(two[0]! - two[1]!) <= 20, `${two}`);
});

test('a row above the budget has a micro-batch of its own, without effect on the others', () => {
  assert.deepEqual(lengths(microBatches([200, 10, 10].map(long), 100)), [[200], [10, 10]]);
  assert.deepEqual(lengths(microBatches([7].map(long), 1)), [[7]]);
  assert.deepEqual(microBatches([], 10), []);
});

test('random rows: each once, no batch above the budget, deterministic, evenly filled', () => {
  for (let seed = 0; seed < 60; seed++) {
    const random = randomStream(seed, 7);
    const rows = Array.from({ length: 1 + Math.floor(random() * 120) }, () => long(1 + Math.floor(random() * 300)));
    const budget = 100 + Math.floor(random() * 1000);
    const batches = microBatches(rows, budget);
    assert.deepEqual(new Set(batches.flat()), new Set(rows));
    assert.equal(batches.flat().length, rows.length);
    for (const batch of batches) assert.ok(batch.length === 1 || tokens(batch) <= budget);
    assert.deepEqual(lengths(microBatches(rows, budget)), lengths(batches));
    const fewest = Math.ceil(rows.reduce((sum, { ids }) => sum + ids.length, 0) / budget);
    if (budget > 600) assert.ok(batches.length <= fewest * 1.25 + 1, `${batches.length} of ${fewest}`);
    const [smallest, largest] = [Math.min(...batches.map(tokens)), Math.max(...batches.map(tokens))];
    if (budget > 600 && rows.length > 8 * batches.length)
      assert.ok(largest - smallest <= 300, `${smallest} and ${largest}`);
  }
});

test('fifty thousand rows are divided quickly', () => {
  const random = randomStream(3);
  const some = Array.from({ length: 400 }, (_, i) => long(i + 1));
  const rows = shuffled(50_000, random).map((i) => some[i % 400]!);
  const start = performance.now();
  assert.equal(microBatches(rows, 512).flat().length, rows.length);
  assert.ok(performance.now() - start < 20_000);
});
