import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { temporary } from '../../test/samples/io.ts';
import { GraftError, LOCK_NAME, lockDirectory, processStamp, waitForLock } from './index.ts';

/** Takes the lock in another process, says so, and holds it until its input ends. */
function holder(path: string): ChildProcess {
  const script = `
    const { lockDirectory } = await import(${JSON.stringify(join(import.meta.dirname, 'index.ts'))});
    process.stdin.resume().on('end', () => process.exit());
    try { lockDirectory(${JSON.stringify(path)}); console.log('taken'); } catch (error) { console.log(error.kind); }`;
  return spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: ['pipe', 'pipe', 'inherit'] });
}
const says = (child: ChildProcess) =>
  new Promise<string>((resolve) => child.stdout!.once('data', (data) => resolve(String(data).trim())));
const ended = (child: ChildProcess) => new Promise((resolve) => child.once('exit', resolve));

const inUse = (path: string, message: RegExp) =>
  assert.throws(
    () => lockDirectory(path),
    (error) => error instanceof GraftError && error.kind === 'state' && message.test(error.message),
  );

describe('waitForLock', () => {
  it('says once who holds the lock, and has it as soon as that process ends', async () => {
    using dir = temporary();
    const child = holder(dir.path);
    assert.equal(await says(child), 'taken');
    const told: string[] = [];
    const waiting = waitForLock(dir.path, (text) => told.push(text));
    await new Promise((resolve) => setTimeout(resolve, 700));
    assert.equal(told.length, 1);
    assert.match(told[0]!, new RegExp(`^process ${child.pid}, since 2`));
    child.kill('SIGKILL');
    using _lock = await waiting;
    inUse(dir.path, new RegExp(`in use by process ${process.pid}`));
  });
});

describe('lockDirectory', () => {
  it('lets one in at a time, and again after it is given back', () => {
    using dir = temporary();
    const path = join(dir.path, 'run');
    {
      using _lock = lockDirectory(path);
      inUse(path, new RegExp(`run: This directory is in use by process ${process.pid} since 2.*Wait for that process`));
      assert.deepEqual(readdirSync(path), [LOCK_NAME]);
    }
    assert.deepEqual(readdirSync(dir.path), [], 'it was made for the lock, and nothing is in it');
    mkdirSync(path);
    lockDirectory(path)[Symbol.dispose]();
  });

  it('is kept out by a live process and takes over from a killed one', { timeout: 30_000 }, async () => {
    using dir = temporary();
    const child = holder(dir.path);
    assert.equal(await says(child), 'taken');
    inUse(dir.path, new RegExp(`in use by process ${child.pid}`));
    child.kill('SIGKILL');
    await ended(child);
    using _lock = lockDirectory(dir.path);
    assert.equal(JSON.parse(readFileSync(join(dir.path, LOCK_NAME), 'utf8')).pid, process.pid);
  });

  it('tells a process from an earlier one with the same number', { skip: processStamp(process.pid) === '0' }, () => {
    using dir = temporary();
    const owner = { pid: process.pid, host: hostname(), since: 'then', born: '1', id: 'x' };
    dir.put(LOCK_NAME, JSON.stringify(owner));
    using _lock = lockDirectory(dir.path);
  });

  it('leaves the lock of another host, and one that it cannot read, to the user', () => {
    using dir = temporary();
    const dead = spawnSync(process.execPath, ['-e', '']).pid;
    dir.put(LOCK_NAME, JSON.stringify({ pid: dead, host: 'elsewhere', since: 'then', born: '1', id: 'x' }));
    inUse(dir.path, /in use by process \d+ on elsewhere since then. If that run has ended, delete .*graft\.lock/);
    writeFileSync(join(dir.path, LOCK_NAME), '');
    inUse(dir.path, /has a lock file that cannot be read. If that run has ended, delete/);
  });

  it('goes to one of many that take over at once', { timeout: 60_000 }, async () => {
    using dir = temporary();
    const dead = spawnSync(process.execPath, ['-e', '']).pid;
    dir.put(LOCK_NAME, JSON.stringify({ pid: dead, host: hostname(), since: 'then', born: '1', id: 'x' }));
    const children = Array.from({ length: 6 }, () => holder(dir.path));
    const answers = await Promise.all(children.map(says));
    assert.deepEqual(answers.sort(), ['state', 'state', 'state', 'state', 'state', 'taken']);
    for (const child of children) child.stdin!.end();
    await Promise.all(children.map(ended));
    assert.deepEqual(readdirSync(dir.path), [LOCK_NAME]);
  });
});
