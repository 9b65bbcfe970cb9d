/** The scheduler and its blocks without a model: random arrivals, cancels, deadlines and pre-emptions. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { randomStream } from '../data/index.ts';
import { BlockManager } from './blocks.ts';
import { Scheduler, type SchedulerLimits, type Step } from './scheduler.ts';
import { Sequence } from './sequence.ts';

const size = 4;

/** What a model would have in each slot of the pool: the content of a slot follows from everything before it. */
class Pool {
  readonly slots = new Map<number, string>();

  /** Writes what a step computes, and checks that it reads what it should. */
  run({ rows }: Step): void {
    const writers = new Set<number>();
    for (const { sequence, start, count } of rows) {
      const { ids, virtual, contentKey, blocks } = sequence;
      const content = (slot: number) =>
        `${contentKey}:${virtual}:${ids.slice(0, Math.max(0, slot - virtual + 1)).join()}@${slot}`;
      const slotOf = (slot: number) => blocks[Math.floor(slot / size)]! * size + (slot % size);
      const first = start === 0 ? 0 : virtual + start;
      for (let slot = 0; slot < first; slot++) {
        assert.equal(this.slots.get(slotOf(slot)), content(slot), 'a slot that is read has another row’s content');
      }
      for (let slot = first; slot < virtual + start + count; slot++) {
        assert.ok(!writers.has(slotOf(slot)), 'two rows write one slot');
        writers.add(slotOf(slot));
        this.slots.set(slotOf(slot), content(slot));
      }
    }
    // No row of the step writes what another reads.
    for (const { sequence, start } of rows) {
      for (let slot = 0; slot < (start === 0 ? 0 : sequence.virtual + start); slot++) {
        const block = sequence.blocks[Math.floor(slot / size)]!;
        assert.ok(!writers.has(block * size + (slot % size)));
      }
    }
  }
}

/** Blocks are held as often as sequences have them, and each is in one state. */
function checkBlocks(blocks: BlockManager, sequences: readonly Sequence[]): void {
  const holders = new Map<number, number>();
  for (const sequence of sequences) {
    assert.equal(new Set(sequence.blocks).size, sequence.blocks.length, 'a row has a block twice');
    for (const block of sequence.blocks) holders.set(block, (holders.get(block) ?? 0) + 1);
  }
  assert.equal(blocks.held, holders.size);
  assert.equal(blocks.available + blocks.held, blocks.total);
  // A block that several hold is full in all of them: nobody writes it.
  for (const sequence of sequences) {
    sequence.blocks.forEach((block, i) => {
      if (holders.get(block)! > 1) assert.ok((i + 1) * size <= sequence.filled, 'a shared block is not full');
    });
  }
}

const batchKeys = ['banks', 'banks', 'banks', 'other 1', 'other 2'];

function scenario(seed: number): {
  steps: number;
  ended: number;
  preemptions: number;
  cancelled: number;
  found: number;
} {
  const random = randomStream(seed);
  const int = (low: number, high: number) => low + Math.floor(random() * (high - low + 1));
  const maxBatchTokens = int(2, 40);
  const limits: SchedulerLimits = {
    maxBatchTokens,
    maxRunning: int(1, Math.min(12, maxBatchTokens)),
    maxQueue: int(1, 20),
    blocks: int(8, 40),
    blockSize: size,
  };
  const scheduler = new Scheduler(limits);
  const pool = new Pool();
  const prefixes = Array.from({ length: 3 }, () => Array.from({ length: 40 }, () => int(0, 2)));
  const alive = new Map<Sequence, { readonly since: number }>();
  const tally = { steps: 0, ended: 0, preemptions: 0, cancelled: 0, found: 0 };
  const arrivals = int(20, 60);
  let arrived = 0;
  for (let now = 0; arrived < arrivals || !scheduler.isIdle; now++) {
    while (arrived < arrivals && random() < 0.4) {
      const kind = int(0, batchKeys.length - 1);
      const virtual = [0, 0, 3, 4, 9][kind]!;
      const maxNewTokens = int(1, 30);
      const room = limits.blocks * size + 1 - virtual;
      const promptLength = int(1, Math.min(45, room - 1));
      const tail = Array.from({ length: 5 }, () => int(0, 9));
      const promptIds = [...prefixes[int(0, 2)]!.slice(0, int(0, promptLength)), ...tail].slice(0, promptLength);
      const sequence = new Sequence({
        promptIds,
        adapter: kind,
        batchKey: batchKeys[kind]!,
        contentKey: `adapter ${kind}`,
        shareKey: `share ${int(0, 3)}`,
        virtual,
        maxNewTokens: Math.min(maxNewTokens, room - promptIds.length),
        eosIds: new Set([7]),
        deadline: random() < 0.1 ? now + int(0, 40) : undefined,
      });
      arrived++;
      if (scheduler.add(sequence)) alive.set(sequence, { since: now });
      else assert.ok(scheduler.waiting >= limits.maxQueue, 'refused though the queue has room');
    }
    if (random() < 0.05 && alive.size > 0) {
      const one = [...alive.keys()][int(0, alive.size - 1)]!;
      one.cancelled = true;
    }
    const step = scheduler.plan(now);
    for (const sequence of step.ended) {
      assert.ok(alive.delete(sequence));
      assert.ok(sequence.ended === 'interrupted' ? sequence.cancelled : sequence.ended === 'deadline');
      if (sequence.cancelled) tally.cancelled++;
    }
    const tokens = step.rows.reduce((sum, { count }) => sum + count, 0);
    assert.ok(tokens <= maxBatchTokens, 'the budget is exceeded');
    assert.ok(scheduler.running <= limits.maxRunning);
    assert.ok(new Set(step.rows.map(({ sequence }) => sequence.batchKey)).size <= 1, 'batch keys are mixed');
    const adapters = step.rows.map(({ sequence }) => sequence.adapter);
    assert.deepEqual(
      adapters,
      [...adapters].sort((a, b) => a - b),
      'rows are not ordered by adapter',
    );
    for (const { sequence, start, count, samples } of step.rows) {
      assert.ok(alive.has(sequence) && count > 0 && start === sequence.computed);
      assert.equal(samples, start + count === sequence.ids.length);
      assert.ok(sequence.blocks.length * size >= sequence.virtual + start + count, 'a token has no slot');
    }
    checkBlocks(scheduler.blocks, [...alive.keys()]);
    pool.run(step);
    const sampled = step.rows.map(({ samples }) => (samples ? int(0, 60) % 10 : undefined));
    for (const sequence of scheduler.apply(step, sampled)) {
      assert.ok(alive.delete(sequence));
      tally.ended++;
      assert.ok(
        sequence.ended === 'eos'
          ? sequence.newTokens < sequence.maxNewTokens
          : sequence.newTokens === sequence.maxNewTokens,
      );
    }
    checkBlocks(scheduler.blocks, [...alive.keys()]);
    // Nobody starves: whatever is alive ends after a bounded number of steps.
    for (const { since } of alive.values()) assert.ok(now - since < 6_000, 'a row starves');
  }
  assert.equal(alive.size, 0);
  assert.equal(scheduler.blocks.held, 0);
  const { steps, preemptions, cache } = scheduler.counts;
  return { ...tally, steps, preemptions, found: cache.found };
}

test('free + held + cached = all, no block with two writers, no row with another’s keys, and nobody starves', (t) => {
  const total = { steps: 0, ended: 0, preemptions: 0, cancelled: 0, found: 0 };
  const scenarios = 300;
  for (let seed = 0; seed < scenarios; seed++) {
    const tally = scenario(seed);
    for (const key of Object.keys(total) as (keyof typeof total)[]) total[key] += tally[key];
  }
  t.diagnostic(`${scenarios} scenarios: ${JSON.stringify(total)}`);
  assert.ok(
    total.preemptions > 100 && total.cancelled > 100 && total.found > 1000 && total.ended > 5000,
    JSON.stringify(total),
  );
});

const sequenceOf = (promptIds: readonly number[], more: Partial<ConstructorParameters<typeof Sequence>[0]> = {}) =>
  new Sequence({
    ...{ promptIds, adapter: 0, batchKey: 'banks', contentKey: 'base', shareKey: '', virtual: 0, maxNewTokens: 50 },
    eosIds: new Set<number>(),
    ...more,
  });

const run = (scheduler: Scheduler, id = 1) => {
  const step = scheduler.plan(0);
  scheduler.apply(
    step,
    step.rows.map(({ samples }) => (samples ? id : undefined)),
  );
  return step.rows.map(({ sequence, count }) => [sequence, count] as const);
};

test('rows that decode come first; prompts are read in chunks beside them', () => {
  const scheduler = new Scheduler({ maxBatchTokens: 8, maxRunning: 8, maxQueue: 8, blocks: 100, blockSize: size });
  const first = sequenceOf([1, 2, 3]);
  scheduler.add(first);
  assert.deepEqual(run(scheduler), [[first, 3]]);
  const long = sequenceOf(Array.from({ length: 20 }, (_, i) => i));
  scheduler.add(long);
  for (const count of [7, 7, 6])
    assert.deepEqual(run(scheduler), [
      [first, 1],
      [long, count],
    ]);
  assert.deepEqual([first.newTokens, long.newTokens], [4, 1]);
});

test('shares take turns: one with many requests does not keep another waiting', () => {
  const scheduler = new Scheduler({ maxBatchTokens: 4, maxRunning: 1, maxQueue: 100, blocks: 100, blockSize: size });
  const order: string[] = [];
  const add = (shareKey: string) => scheduler.add(sequenceOf([1, 2], { shareKey, maxNewTokens: 1 }));
  for (let i = 0; i < 20; i++) add('busy');
  for (let i = 0; i < 4; i++) run(scheduler);
  for (let i = 0; i < 3; i++) add('late');
  while (!scheduler.isIdle) for (const [sequence] of run(scheduler)) order.push(sequence.shareKey);
  assert.ok(order.indexOf('late') < 2 && order.lastIndexOf('late') < 7, order.join());
});

test('a row that is short of blocks is not overtaken for ever by smaller ones', () => {
  const scheduler = new Scheduler({ maxBatchTokens: 64, maxRunning: 8, maxQueue: 100, blocks: 12, blockSize: size });
  let count = 0;
  const small = () => sequenceOf([count], { maxNewTokens: 5 + (count++ % 5), shareKey: 'small', batchKey: 'other' });
  for (let i = 0; i < 12; i++) {
    scheduler.add(small());
    run(scheduler);
  }
  const ids = Array.from({ length: 45 }, (_, i) => i);
  const large = sequenceOf(ids, { maxNewTokens: 1, shareKey: 'large' });
  scheduler.add(large);
  let steps = 0;
  for (; !large.ended && steps < 500; steps++) {
    if (scheduler.waiting < 50) scheduler.add(small());
    run(scheduler);
  }
  assert.ok(steps < 60, `${steps} steps`);
});

test('of rows that run, the one that came last loses its blocks, and is computed again', () => {
  const scheduler = new Scheduler({ maxBatchTokens: 64, maxRunning: 4, maxQueue: 9, blocks: 6, blockSize: size });
  const rows = [0, 1, 2].map((i) => sequenceOf([i, i, i], { maxNewTokens: 12 }));
  for (const row of rows) scheduler.add(row);
  const order: Sequence[] = [];
  for (let step = 0; !scheduler.isIdle; step++) {
    const before = rows.map(({ computed }) => computed);
    run(scheduler, step);
    rows.forEach((row, i) => {
      if (row.ended && !order.includes(row)) order.push(row);
      else if (row.computed < before[i]!) assert.ok(i > 0, 'the first row is pre-empted');
    });
  }
  assert.deepEqual(order, rows);
  assert.ok(scheduler.counts.preemptions > 0);
  for (const row of rows) assert.equal(row.newTokens, 12);
});

test('blocks: keys are content and adapter; a prefix is found up to the last token, which is left to compute', () => {
  const blocks = new BlockManager(10, size);
  const ids = [1, 2, 3, 4, 5, 6, 7, 8];
  const taken = blocks.take(2)!;
  const parent = blocks.publish(taken[0]!, 'a', ids, 0, 0);
  blocks.publish(taken[1]!, parent, ids, 0, 1);
  blocks.release(taken);
  assert.deepEqual([blocks.cached, blocks.available, blocks.held], [2, 10, 0]);
  const found = (root: string, row: readonly number[], virtual = 0) => {
    const match = blocks.match(root, row, virtual);
    blocks.release(match.blocks);
    return match.blocks;
  };
  assert.deepEqual(found('a', [...ids, 9]), taken);
  assert.deepEqual(found('a', ids), taken.slice(0, 1), 'the last token is computed');
  assert.deepEqual(found('a', [1, 2, 3, 4, 5, 6, 7, 0, 1]), taken.slice(0, 1));
  assert.deepEqual(found('b', [...ids, 9]), [], 'another adapter');
  assert.deepEqual(found('a', [...ids, 9], 4), [], 'virtual slots are in front');
  blocks.take(10);
  assert.equal(blocks.take(1), undefined);
});

test('blocks: the end of a row is evicted before its beginning', () => {
  const blocks = new BlockManager(10, size);
  const ids = [1, 2, 3, 4, 5, 6, 7, 8, 9];
  const taken = blocks.take(2)!;
  blocks.publish(taken[1]!, blocks.publish(taken[0]!, 'a', ids, 0, 0), ids, 0, 1);
  blocks.release(taken);
  assert.equal(blocks.take(9)!.length, 9);
  assert.deepEqual(blocks.match('a', ids, 0).blocks, taken.slice(0, 1));
});

test('blocks with virtual slots: found where ids follow them, and not within them', () => {
  const blocks = new BlockManager(10, size);
  const ids = [1, 2, 3, 4, 5];
  const taken = blocks.take(3)!;
  let parent = 'a';
  for (let b = 0; b < 2; b++) parent = blocks.publish(taken[b]!, parent, ids, 5, b);
  blocks.release(taken);
  assert.deepEqual(blocks.match('a', [1, 2, 3, 9], 5).blocks, taken.slice(0, 2));
  assert.deepEqual(blocks.match('a', [1, 2, 9, 9], 5).blocks, [], 'the first block has virtual slots only');
});
