import {
  closeSync,
  fsyncSync,
  linkSync,
  openSync,
  readFileSync,
  renameSync,
  rmdirSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { GraftError } from './errors.ts';
import { fileError, makeDirectory } from './files.ts';

/** Name of the lock file inside a locked directory. */
export const LOCK_NAME = 'graft.lock';

interface Owner {
  readonly pid: number;
  readonly host: string;
  /** When the lock was taken, ISO 8601. */
  readonly since: string;
  /** `processStamp(pid)`: tells the process from a later one with the same id. */
  readonly born: string;
  readonly id: string;
}

/**
 * Locks a directory, created if absent, for this process until disposed, by a lock file with process id, host and time.
 * Directories that it made are removed with the lock where they are still empty: what is refused leaves nothing behind.
 * The lock of a process that no longer runs (killed, machine restarted) is replaced. A second lock by one process is refused.
 * @throws GraftError `state` when a running process, or one on another host, holds the lock
 */
export function lockDirectory(path: string): Disposable {
  const lock = join(path, LOCK_NAME);
  const id = `${process.pid}-${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}`;
  const owner: Owner = {
    pid: process.pid,
    host: hostname(),
    since: new Date().toISOString(),
    born: processStamp(process.pid),
    id,
  };
  const made: string[] = [];
  try {
    for (let tries = 0; tries < 100; tries++) {
      made.push(...makeDirectory(path));
      if (createLock(lock, owner)) break;
      const text = textOf(lock);
      if (text !== undefined) removeStale(path, lock, text, id); // throws where the owner still runs
    }
  } catch (error) {
    throw fileError(error, path, 'locked');
  }
  if (ownerIn(textOf(lock))?.id !== id)
    throw new GraftError('state', 'Other processes lock this directory again and again', {
      place: path,
      hint: 'Start only one run in it',
    });
  return {
    [Symbol.dispose]() {
      try {
        if (ownerIn(textOf(lock))?.id !== id) return;
        rmSync(lock, { force: true });
        for (const dir of made.toReversed()) rmdirSync(dir); // throws for the first that is not empty
      } catch {
        // What was made has content; or a disk has become read-only: the lock is out of date once this process has ended, and the error that counts is another.
      }
    },
  };
}

/** Milliseconds between two tries to lock a directory, and after which a thread of this process is taken to have ended without unlocking it. */
const [retryInterval, longestOwn] = [250, 30 * 60_000];

/** Who holds a lock, as a message names it. */
const holderText = ({ pid, host, since }: Readonly<Record<string, unknown>>) =>
  `process ${pid}${host === hostname() ? '' : ` on ${host}`}, since ${since}`;

/**
 * Locks a directory as `lockDirectory` does, after waiting for a process that holds the lock, or for another thread of this one.
 * @param onWait is told who that is, once for each
 * @throws GraftError `state` where this process has held it for half an hour, or its lock file cannot be read
 */
export async function waitForLock(directory: string, onWait: (holder: string) => void = () => {}): Promise<Disposable> {
  let told: string | undefined;
  for (const start = performance.now(); ; ) {
    try {
      return lockDirectory(directory);
    } catch (error) {
      const owner = error instanceof GraftError && error.kind === 'state' ? error.data : {};
      const isTooLong = owner.pid === process.pid && performance.now() - start > longestOwn;
      if (typeof owner.pid !== 'number' || isTooLong) throw error;
      const holder = holderText(owner);
      if (holder !== told) onWait(holder);
      told = holder;
      await wait(retryInterval);
    }
  }
}

/** Creates the lock file atomically; returns false where one exists already. */
function createLock(lock: string, owner: Owner): boolean {
  const draft = `${lock}.${owner.id}`;
  const write = (path: string) => {
    const fd = openSync(path, 'wx');
    try {
      writeSync(fd, `${JSON.stringify(owner)}\n`);
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
  };
  try {
    write(draft);
    try {
      linkSync(draft, lock);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EEXIST') throw error;
      write(lock); // a file system without hard links
    }
    return true;
  } catch (error) {
    // ENOENT: another process removed the directory, which it had made and left empty.
    if (['EEXIST', 'ENOENT'].includes((error as NodeJS.ErrnoException).code ?? '')) return false;
    throw error;
  } finally {
    rmSync(draft, { force: true });
  }
}

/**
 * Deletes the lock of a process that no longer runs. Renaming it first lets only one of several processes do so.
 * @throws GraftError `state` where the owner may still run
 */
function removeStale(path: string, lock: string, text: string, id: string): void {
  const owner = ownerIn(text);
  const elsewhere = owner !== undefined && owner.host !== hostname();
  if (!owner || elsewhere || isRunning(owner.pid, owner.born)) {
    const who = owner && `process ${owner.pid}${elsewhere ? ` on ${owner.host}` : ''} since ${owner.since}`;
    throw new GraftError(
      'state',
      who ? `This directory is in use by ${who}` : 'This directory has a lock file that cannot be read',
      {
        place: path,
        hint:
          owner && !elsewhere
            ? 'Wait for that process, stop it, or choose another directory'
            : `If that run has ended, delete ${lock}`,
        ...(owner && { data: { pid: owner.pid, host: owner.host, since: owner.since } }),
      },
    );
  }
  const stale = `${lock}.stale-${id}`;
  try {
    renameSync(lock, stale);
    if (textOf(stale) !== text) linkSync(stale, lock); // another process replaced the lock meanwhile: restore its lock
  } catch (error) {
    if (!['ENOENT', 'EEXIST'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error;
  } finally {
    rmSync(stale, { force: true });
  }
}

function textOf(lock: string): string | undefined {
  try {
    return readFileSync(lock, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}

function ownerIn(text: string | undefined): Owner | undefined {
  try {
    const owner: Partial<Owner> | null = JSON.parse(text ?? 'null');
    const complete =
      typeof owner?.pid === 'number' &&
      typeof owner.host === 'string' &&
      typeof owner.born === 'string' &&
      typeof owner.since === 'string';
    return complete ? (owner as Owner) : undefined;
  } catch {
    return undefined;
  }
}

/**
 * Returns state letter and start time in clock ticks of a process, from proc(5); undefined where the system has no /proc.
 */
function procStat(pid: number): { state: string; ticks: string } | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return { state: fields[0] ?? '', ticks: fields[19] ?? '0' };
  } catch {
    return undefined;
  }
}

/**
 * Returns digits that tell a process from a later one with the same id: its start time and the boot of the machine.
 * `0` where the system has no /proc.
 */
export function processStamp(pid: number): string {
  const stat = procStat(pid);
  if (!stat) return '0';
  const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').slice(0, 8);
  return `${Number.parseInt(boot, 16)}${stat.ticks.padStart(12, '0')}`;
}

/** Whether the process with this id runs on this host, is not a zombie, and has this `processStamp`. */
export function isRunning(pid: number, stamp: string): boolean {
  try {
    process.kill(pid, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return false; // EPERM: it runs, under another user
  }
  if (procStat(pid)?.state === 'Z') return false;
  const currentStamp = processStamp(pid);
  return stamp === '0' || currentStamp === '0' || stamp === currentStamp;
}
