import assert from 'node:assert/strict';
import test from 'node:test';
import { PassThreads, ThreadChoice } from './pass-threads.ts';

/** Runs passes, and returns how often each number of threads was used. */
function run(choice: ThreadChoice, passes: number, ms: (threads: number) => number): Map<number, number> {
  const used = new Map<number, number>();
  for (let i = 0; i < passes; i++) {
    const { threads } = choice;
    used.set(threads, (used.get(threads) ?? 0) + 1);
    choice.took(ms(threads) + 0.001 * i); // rows grow
  }
  return used;
}

test('the fastest number of threads is found, kept, and left when the machine changes', () => {
  const alone = (threads: number) => 20 / threads + 0.5;
  const dearWakes = (threads: number) => 20 / threads + 6 * (threads - 1);
  const choice = new ThreadChoice(8);
  run(choice, 100, dearWakes);
  assert.equal(choice.threads, 2);
  const used = run(choice, 4000, dearWakes);
  assert.ok(used.get(2)! > 3900, `trials are rare: ${JSON.stringify([...used])}`);
  run(choice, 1600, alone);
  assert.equal(choice.threads, 8);
  assert.ok(run(choice, 4000, alone).get(8)! > 3900);
});

test('with numbers that are equally fast nothing changes, and one thread is not tried against itself', () => {
  const choice = new ThreadChoice(2);
  assert.ok(run(choice, 2000, () => 10).get(2)! > 1900);
  assert.deepEqual([...run(new ThreadChoice(1), 100, () => 1).keys()], [1]);
});

test('a choice is that of passes of its size; large passes have none', () => {
  const threads = new PassThreads();
  assert.equal(threads.of(16, 4), threads.of(9, 4));
  assert.notEqual(threads.of(16, 4), threads.of(1, 4));
  assert.notEqual(threads.of(16, 4), threads.of(16, 2));
  assert.equal(threads.of(33, 4), undefined);
  assert.equal(threads.of(1, 1), undefined);
});
