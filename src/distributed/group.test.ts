/** Groups of real processes on this machine. */
import assert from 'node:assert/strict';
import { cpSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import test from 'node:test';
import { type Outcome, runRanks } from '../../test/samples/ranks.ts';
import { temporary } from '../../test/support.ts';
import { type ErrorJson, packageRoot } from '../base/index.ts';
import { oneProcess } from './group.ts';

/** Asserts how a process ended. @returns its error */
function assertFailed({ error, seconds }: Outcome, why: RegExp, within: number): ErrorJson {
  assert.ok(error, 'it has an error');
  assert.match(error.message, why);
  assert.ok(seconds! < within, `${error.message} after ${seconds} s`);
  return error;
}

// Up to four gather by broadcasts, more in a ring.
for (const size of [2, 3, 5]) {
  test(`collectives of ${size} processes`, async () => {
    const outcomes = await runRanks('collectives', -1, { size });
    const all = Array.from({ length: size }, (_, rank) => rank);
    const total = all.reduce((sum, rank) => sum + rank + 1, 0);
    for (const [rank, { value, error }] of outcomes.entries()) {
      assert.equal(error, undefined);
      const { traffic, ...results } = value as { traffic: Record<string, number> };
      assert.deepEqual(results, {
        sum: [total, 10 * size],
        gather: all.flatMap((other) => [other, 7]),
        gatheredBytes: all.flatMap((other) => [other, 7]),
        scatter: [2 * rank * size, (2 * rank + 1) * size],
        broadcast: [1, 200],
        exchange: all.flatMap((other) => Array.from({ length: other + 1 }, () => 10 * other)),
        agreed: { rank: all, twice: all.map((other) => 2 * other) },
        collected: all.map((other) => ({ of: 'x'.repeat(other) })),
        shared: { rank: 0, text: 'ö', nothing: null },
      });
      assert.ok(traffic.sent! > 0 && traffic.received! > 0 && traffic.waited! > 0);
    }
    assert.equal(outcomes.length, size);
  });
}

test('a group of one process keeps what it has', () => {
  assert.deepEqual(oneProcess.agree({ a: 3 }), { a: [3] });
  assert.deepEqual(
    oneProcess.share(() => [1]),
    [1],
  );
});

for (const failing of [0, 1]) {
  test(`rank ${failing} of 3 is killed: the others name it`, async () => {
    const outcomes = await runRanks('kill', failing, { size: 3 });
    assert.equal(outcomes[failing]!.signal, 'SIGKILL');
    const others = outcomes.filter((_, rank) => rank !== failing);
    const why = new RegExp(`^rank ${failing} ended or cannot be reached any more`);
    for (const outcome of others) assertFailed(outcome, why, 15);
    assert.equal(others.length, 2);
  });
}

for (const failing of [0, 1]) {
  test(`rank ${failing} of 3 is killed while they connect: the others name it`, async () => {
    const outcomes = await runRanks('killWhileConnecting', failing, { size: 3, timeout: 2 });
    assert.equal(outcomes[failing]!.signal, 'SIGKILL');
    const others = outcomes.filter((_, rank) => rank !== failing);
    const why = new RegExp(`^rank ${failing} ended or cannot be reached any more`);
    for (const outcome of others) assertFailed(outcome, why, 20);
    assert.equal(others.length, 2);
  });
}

test('a rank is killed at any moment of connecting: the others name it', async () => {
  // Some of these come between the addresses that all have said and the connections that none has yet.
  const moments = [...[1, 2, 4, 8].map((after) => ({ failing: 0, after })), { failing: 1, after: 2 }];
  for (const { failing, after } of moments) {
    const env = { [failing]: { KILL_AFTER: String(after / 1000) } };
    const outcomes = await runRanks('killWhileConnecting', failing, { size: 3, timeout: 2, env });
    const why = new RegExp(`^rank ${failing} ended or cannot be reached any more`);
    for (const [rank, outcome] of outcomes.entries()) if (rank !== failing) assertFailed(outcome, why, 15);
    assert.equal(outcomes.length, 3);
  }
});

test('a rank that is stopped is named after the timeout, by all', async () => {
  const [first, , third] = await runRanks('stop', 1, { size: 3, timeout: 3 });
  for (const outcome of [first!, third!])
    assertFailed(outcome, /^rank 1 took no part within 3 s, and does not answer: stopped, or cut off/, 20);
});

test('a rank that computes for too long is named', async () => {
  const [first] = await runRanks('slow', 1, { size: 2, timeout: 2 });
  assertFailed(first!, /^rank 1 took no part within 2 s, but still runs/, 12);
});

test('the error of one rank is that of all', async () => {
  const [first, second, third] = await runRanks('fail', 1, { size: 3 });
  assertFailed(second!, /^rows.jsonl:3: the row has no label/, 10);
  for (const outcome of [first!, third!]) {
    const { kind, data } = assertFailed(outcome, /^rank 1 failed: rows.jsonl:3: the row has no label/, 10);
    assert.equal(kind, 'input');
    assert.deepEqual(data?.failedRanks, [1]);
  }
  const [ofRank0, other] = await runRanks('failInShare', 0, { size: 2 });
  assertFailed(ofRank0!, /^out: the directory is in use/, 10);
  assertFailed(other!, /^rank 0 failed: out: the directory is in use/, 10);
});

test('a port in use, absent ranks, two processes of one rank', async () => {
  const server = createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  const { port } = server.address() as { port: number };
  const [busy] = await runRanks('collectives', -1, { size: 2, port, absent: [1], timeout: 3 });
  server.close();
  assertFailed(busy!, new RegExp(`^127.0.0.1:${port}: the port is in use on this machine`), 10);

  const [alone] = await runRanks('collectives', -1, { size: 3, absent: [1, 2], timeout: 2 });
  assertFailed(alone!, /^ranks 1 and 2 of 3 did not start within 2 s/, 10);
  const [, late] = await runRanks('collectives', -1, { size: 3, absent: [0], timeout: 2 });
  assertFailed(late!, /: rank 2 cannot reach rank 0 within 2 s/, 15);

  const twice = await runRanks('collectives', -1, { size: 3, timeout: 3, env: { 2: { RANK: '1' } } });
  assert.ok(twice.some(({ error }) => /two processes have rank 1|did not start/.test(error?.message ?? '')));
  const sizes = await runRanks('collectives', -1, { size: 2, timeout: 3, env: { 1: { WORLD_SIZE: '3' } } });
  assert.match(sizes[0]!.error!.message, /rank 0 has processes in all 2 .*, but rank 1 has processes in all 3/);
});

test('a process of another run is refused, and disturbs none', async () => {
  const ofRun = (name: string, rank: number) => {
    const place = { RANK: String(rank), LOCAL_RANK: String(rank), WORLD_SIZE: '2', LOCAL_WORLD_SIZE: '2' };
    return { GRAFT_RUN_ID: name, ...place };
  };
  const env = { 0: ofRun('one', 0), 1: ofRun('one', 1), 2: ofRun('two', 1) };
  // Rank 1 of the first run starts last: the run is there, and waits for it, for as long as the other takes to start.
  const [first, second, third] = await runRanks('collectives', -1, { size: 3, env, last: 1 });
  assert.deepEqual([first!.error, second!.error], [undefined, undefined]);
  assertFailed(third!, /another run meets here: its rank 0 is process \d+ on .*Choose another port/, 20);
});

test('ranks with different versions of Graft', async () => {
  using folder = temporary();
  const root = join(folder.path, 'graft');
  mkdirSync(join(root, 'test', 'samples'), { recursive: true });
  for (const name of ['src', 'native', join('test', 'samples', 'rank.ts')])
    cpSync(join(packageRoot, name), join(root, name), { recursive: true });
  symlinkSync(join(packageRoot, 'node_modules'), join(root, 'node_modules'));
  const manifest = JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8')) as object;
  writeFileSync(join(root, 'package.json'), JSON.stringify({ ...manifest, version: '99.0.0' }));
  const outcomes = await runRanks('collectives', -1, { size: 2, roots: { 1: root } });
  for (const outcome of outcomes)
    assertFailed(outcome, /rank 0 has Graft \d+\.\d+\.\d+ .*, but rank 1 has Graft 99\.0\.0 /, 10);
  assert.equal(outcomes.length, 2);
});
