import assert from 'node:assert/strict';
import test from 'node:test';
import { taskSchedule } from './task-schedule.ts';

test('every task has its share at any time, and each of its turns once', () => {
  let turns = 0;
  for (const weights of [[1], [1, 1], [10, 4], [1, 99], [3, 5, 7], [0.2, 0.2, 0.6, 11]]) {
    const sum = weights.reduce((a, b) => a + b);
    const had = weights.map(() => 0);
    const schedule = taskSchedule(weights.map((weight) => weight / sum));
    for (let step = 0; step < 300; step++) {
      const { task, index } = schedule(step);
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
  const tasks = (steps: readonly number[]) => {
    const schedule = taskSchedule([0.5, 0.25, 0.25]);
    return steps.map((step) => schedule(step).task);
  };
  assert.deepEqual(tasks([0, 1, 2, 3, 4, 5, 6, 7]), [0, 1, 2, 0, 0, 1, 2, 0]);
  assert.deepEqual(tasks([4, 7]), [0, 0], 'a resumed run');
});
