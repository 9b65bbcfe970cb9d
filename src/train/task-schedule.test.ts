import assert from 'node:assert/strict';
import test from 'node:test';
import { scheduleTasks } from './task-schedule.ts';

test('every task has its share at any time, and each of its turns once', () => {
  let turns = 0;
  for (const weights of [[1], [1, 1], [10, 4], [1, 99], [3, 5, 7], [0.2, 0.2, 0.6, 11]]) {
    const sum = weights.reduce((a, b) => a + b);
    const had = weights.map(() => 0);
    for (const [step, { task, index }] of scheduleTasks(
      weights.map((weight) => weight / sum),
      300,
    ).entries()) {
      assert.equal(index, had[task]!++);
      for (const [k, weight] of weights.entries()) {
        assert.ok(
          Math.abs(had[k]! - (weight / sum) * (step + 1)) < weights.length,
          `${weights}: ${had} after ${step + 1}`,
        );
      }
      turns++;
    }
  }
  assert.equal(turns, 6 * 300);
  const order = scheduleTasks([0.5, 0.25, 0.25], 8).map(({ task }) => task);
  assert.deepEqual(order, [0, 1, 2, 0, 0, 1, 2, 0]);
  assert.deepEqual(
    scheduleTasks([0.5, 0.25, 0.25], 5).map(({ task }) => task),
    order.slice(0, 5),
  );
});
