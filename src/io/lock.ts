import { closeSync, fsyncSync, linkSync, openSync, readFileSync, renameSync, rmSync, writeSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { fileError, GraftError, makeDirectory } from '../base/index.ts';

/** Name of the lock file inside a locked directory. */
export const LOCK_NAME = 'graft.lock';

interface Owner {
  readonly pid: number;
  readonly host: string;
  /** When the lock was taken, ISO 8601. */
  readonly since: string;
  /** `bornAt(pid)`: tells the process from a later one with the same number. */
  readonly born: string;
  readonly id: string;
}

/**
 * Takes a directory (made if absent) for this process until disposed, by a lock file with process number, host and time.
 * The lock of a process that is gone (killed, machine restarted) is taken over. A process's second lock is refused too.
 * @throws GraftError `state` when a live process, or one on another host, holds it
 */
export function lockDirectory(path: string): Disposable {
  const lock = join(path, LOCK_NAME);
  const id = `${process.pid}-${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}`;
  const mine: Owner = {
    pid: process.pid,
    host: hostname(),
    since: new Date().toISOString(),
    born: bornAt(process.pid),
    id,
  };
  try {
    makeDirectory(path);
    for (let tries = 0; tries < 100 && !place(lock, mine); tries++) {
      const text = textOf(lock);
      if (text !== undefined) removeStale(path, lock, text, id); // throws unless it is stale
    }
  } catch (error) {
    throw fileError(error, path, 'locked');
  }
  if (ownerIn(textOf(lock))?.id !== id)
    throw new GraftError('state', 'Other processes keep taking this directory', {
      place: path,
      hint: 'Start one run only',
    });
  return {
    [Symbol.dispose]() {
      if (ownerIn(textOf(lock))?.id === id) rmSync(lock, { force: true });
    },
  };
}

/** Puts the lock file in place, whole or not at all; false when there is one already. */
function place(lock: string, owner: Owner): boolean {
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
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false;
    throw error;
  } finally {
    rmSync(draft, { force: true });
  }
}

/** Moves a dead process's lock away and deletes it. Of several takers, the rename lets one have it. */
function removeStale(path: string, lock: string, text: string, id: string): void {
  const owner = ownerIn(text);
  const elsewhere = owner !== undefined && owner.host !== hostname();
  if (!owner || elsewhere || isRunning(owner.pid, owner.born)) {
    const who = owner && `process ${owner.pid}${elsewhere ? ` on ${owner.host}` : ''} since ${owner.since}`;
    throw new GraftError(
      'state',
      who ? `This directory is in use by ${who}` : 'This directory has a lock that cannot be read',
      {
        place: path,
        hint:
          owner && !elsewhere
            ? 'Wait for it, stop it, or choose another directory'
            : `If no such run exists any more, delete ${lock}`,
        ...(owner && { data: { pid: owner.pid, host: owner.host, since: owner.since } }),
      },
    );
  }
  const away = `${lock}.stale-${id}`;
  try {
    renameSync(lock, away);
    if (textOf(away) !== text) linkSync(away, lock); // another taker was faster: this is its live lock, give it back
  } catch (error) {
    if (!['ENOENT', 'EEXIST'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error;
  } finally {
    rmSync(away, { force: true });
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

/** State letter and start in clock ticks of a process, from proc(5); undefined where the system does not say. */
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
 * Digits that tell a process from a later one that gets the same number: its start and which start of the machine that
 * belongs to. `0` where the system does not say.
 */
export function bornAt(pid: number): string {
  const stat = procStat(pid);
  if (!stat) return '0';
  const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').slice(0, 8);
  return `${Number.parseInt(boot, 16)}${stat.ticks.padStart(12, '0')}`;
}

/** Whether the process with this number, on this host, is the one that `bornAt` described, and not a zombie. */
export function isRunning(pid: number, born: string): boolean {
  try {
    process.kill(pid, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return false; // EPERM: it lives, and is another user's
  }
  if (procStat(pid)?.state === 'Z') return false;
  const now = bornAt(pid);
  return born === '0' || now === '0' || born === now;
}
