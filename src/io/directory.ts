import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { fileError, GraftError, makeDirectory } from '../base/index.ts';
import { bornAt, isRunning } from './lock.ts';

/**
 * Writes a directory as a whole. `fill` gets an empty directory beside `path` to write into; then every file in it is
 * flushed to disk and it takes the place of `path`, whose former contents go. If `fill` throws, or the process dies at
 * any moment, `path` stays what it was: a reader never sees a part. What killed runs left is cleared by the next call.
 *
 * Replacing takes two renames; a process killed between them leaves `path` absent and its former contents aside, which
 * `recoverDirectory` and the next call put back.
 * @param fill may return a promise, then so does this function
 * @throws GraftError `environment` for a full disk or missing rights; what `fill` throws
 */
export function writeDirectory(path: string, fill: (aside: string) => Promise<void>): Promise<void>;
export function writeDirectory(path: string, fill: (aside: string) => void): void;
export function writeDirectory(path: string, fill: (aside: string) => unknown): Promise<void> | undefined {
  const target = targetOf(path);
  const aside = asideName(target, 'new');
  const abandon = (error: unknown) => {
    const at = (error as NodeJS.ErrnoException | null)?.path; // what `fill` read elsewhere and failed at keeps its name
    let shown = fileError(error, at && !at.startsWith(aside) ? at : path, 'written');
    if (shown instanceof GraftError && shown.place?.startsWith(aside))
      shown = shown.at(path + shown.place.slice(aside.length));
    rmSync(aside, { recursive: true, force: true });
    return shown;
  };
  const finish = () => {
    const old = existsSync(target) ? asideName(target, 'old') : undefined;
    try {
      flush(aside);
      if (old) renameSync(target, old);
      renameSync(aside, target);
      flushEntry(dirname(target));
      if (old) rmSync(old, { recursive: true, force: true });
    } catch (error) {
      if (old && existsSync(old) && !existsSync(target)) renameSync(old, target);
      throw abandon(error);
    }
  };
  try {
    makeDirectory(dirname(target));
    recoverDirectory(target);
    if (existsSync(target) && !statSync(target).isDirectory())
      throw new GraftError('usage', 'There is already something here that is not a directory', {
        place: path,
        hint: 'Choose another path',
      });
    mkdirSync(aside);
    const filled = fill(aside);
    if (filled instanceof Promise)
      return filled.then(finish, (error) => {
        throw abandon(error);
      });
  } catch (error) {
    throw abandon(error);
  }
  finish();
  return undefined;
}

/** @throws GraftError 'usage' where something is already: a result never takes the place of what it was not asked to */
export function requireNew(path: string): void {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat?.isDirectory() ? readdirSync(path).length > 0 : stat)
    throw new GraftError('usage', 'There is already something here', {
      place: path,
      hint: 'Choose another path, or delete it',
    });
}

/**
 * Ends what a killed `writeDirectory(path, …)` or `writeFile(path, …)` left: former contents that were moved away and
 * not yet replaced come back, half-written ones go. Call it before reading a directory that a killed run may have been
 * replacing. Leaves what a live process is writing.
 */
export function recoverDirectory(path: string): void {
  const target = targetOf(path);
  const prefix = `.${basename(target)}.`;
  let names: string[];
  try {
    names = readdirSync(dirname(target));
  } catch {
    return; // no parent: nothing was left
  }
  for (const name of names) {
    const match = name.startsWith(prefix) && /^(new|old)-(\d+)-(\d+)-[0-9a-z]+$/.exec(name.slice(prefix.length));
    if (!match) continue;
    if (isRunning(Number(match[2]), match[3]!)) continue;
    const left = join(dirname(target), name);
    if (match[1] === 'old' && !existsSync(target)) renameSync(left, target);
    else rmSync(left, { recursive: true, force: true });
  }
}

/**
 * Writes a file as a whole: aside, flushed to disk, then renamed over `path`. Nothing is left when it fails.
 * @param fill calls `write` with one piece after another
 */
export function writeFile(path: string, fill: (write: (bytes: Uint8Array) => void) => void): void {
  const target = targetOf(path);
  const aside = asideName(target, 'new');
  let fd: number | undefined;
  let opened = false;
  try {
    makeDirectory(dirname(target));
    recoverDirectory(target);
    if (existsSync(target) && !statSync(target).isFile())
      throw new GraftError('usage', 'There is already something here that is not a file', {
        place: path,
        hint: 'Choose another path',
      });
    const open = openSync(aside, 'wx');
    fd = open;
    opened = true;
    fill((bytes) => writeAll(open, bytes));
    fsyncSync(open);
    closeSync(open);
    fd = undefined;
    renameSync(aside, target);
    flushEntry(dirname(target));
  } catch (error) {
    if (fd !== undefined) closeSync(fd);
    const shown = fileError(error, path, 'written');
    if (opened) rmSync(aside, { force: true });
    throw shown;
  }
}

function writeAll(fd: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.byteLength; )
    done += writeSync(fd, bytes, done, Math.min(2 ** 30, bytes.byteLength - done));
}

/** Where `path` leads; behind a symbolic link, so that the link stays. */
function targetOf(path: string): string {
  return existsSync(path) ? realpathSync(path) : resolve(path);
}

let made = 0;

/** A name beside `target` that says which process uses it: `.model.new-4711-12345678-0k3`. */
function asideName(target: string, kind: 'new' | 'old'): string {
  const unique = `${(made++).toString(36)}${Math.random().toString(36).slice(2, 8)}`;
  return join(dirname(target), `.${basename(target)}.${kind}-${process.pid}-${bornAt(process.pid)}-${unique}`);
}

/** fsync of a directory and all in it, so that the rename that follows cannot reach the disk before the contents. */
function flush(directory: string): void {
  for (const entry of readdirSync(directory, { withFileTypes: true })) {
    const path = join(directory, entry.name);
    if (entry.isDirectory()) flush(path);
    else if (entry.isFile()) flushEntry(path);
  }
  flushEntry(directory);
}

function flushEntry(path: string): void {
  const fd = openSync(path, 'r');
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}
