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
import { fileError, GraftError, isRunning, makeDirectory, processStamp } from '../base/index.ts';

/**
 * Writes a directory atomically. `fill` writes into an empty draft directory next to `path`; then every file in it is
 * flushed to disk and it replaces `path`, whose former contents are deleted. If `fill` throws, or the process dies at any
 * moment, `path` stays as it was: a reader never sees half a directory. The next call deletes what killed processes left.
 *
 * Replacing takes two renames; a process killed between them leaves no `path` and its former contents under a temporary
 * name, from which `recoverDirectory` and the next call restore them.
 * @param fill may return a promise, then so does this function
 * @throws GraftError `environment` for a full disk or missing rights; what `fill` throws
 */
export function writeDirectory(path: string, fill: (draft: string) => Promise<void>): Promise<void>;
export function writeDirectory(path: string, fill: (draft: string) => void): void;
export function writeDirectory(path: string, fill: (draft: string) => unknown): Promise<void> | undefined {
  const target = targetOf(path);
  const draft = temporaryName(target, 'new');
  /** Deletes the draft and returns the error with `path` in the place of the draft's name. */
  const abandon = (error: unknown) => {
    const errorPath = (error as NodeJS.ErrnoException | null)?.path; // a file elsewhere that `fill` could not read keeps its name
    let explained = fileError(error, errorPath && !errorPath.startsWith(draft) ? errorPath : path, 'written');
    if (explained instanceof GraftError && explained.place?.startsWith(draft))
      explained = explained.at(path + explained.place.slice(draft.length));
    rmSync(draft, { recursive: true, force: true });
    return explained;
  };
  const finish = () => {
    const former = existsSync(target) ? temporaryName(target, 'old') : undefined;
    try {
      flush(draft);
      if (former) renameSync(target, former);
      renameSync(draft, target);
      flushEntry(dirname(target));
      if (former) rmSync(former, { recursive: true, force: true });
    } catch (error) {
      if (former && existsSync(former) && !existsSync(target)) renameSync(former, target);
      throw abandon(error);
    }
  };
  try {
    makeDirectory(dirname(target));
    recoverDirectory(target);
    if (existsSync(target) && !statSync(target).isDirectory())
      throw new GraftError('usage', 'The path exists already and is not a directory', {
        place: path,
        hint: 'Choose another path',
      });
    mkdirSync(draft);
    const filled = fill(draft);
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

/**
 * @throws GraftError 'usage' where `path` exists and is not an empty directory, so that a result never overwrites anything
 */
export function requireNew(path: string): void {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat?.isDirectory() ? readdirSync(path).length > 0 : stat)
    throw new GraftError('usage', 'The path exists already', {
      place: path,
      hint: 'Choose another path, or delete it',
    });
}

/**
 * Cleans up after a killed `writeDirectory(path, …)` or `writeFile(path, …)`: restores former contents that were moved away
 * and not yet replaced, and deletes drafts. Call it before reading a directory that a killed process may have been replacing.
 * Drafts of running processes stay.
 */
export function recoverDirectory(path: string): void {
  const target = targetOf(path);
  const prefix = `.${basename(target)}.`;
  let names: string[];
  try {
    names = readdirSync(dirname(target));
  } catch {
    return; // no parent directory: nothing to clean up
  }
  for (const name of names) {
    const match = name.startsWith(prefix) && /^(new|old)-(\d+)-(\d+)-[0-9a-z]+$/.exec(name.slice(prefix.length));
    if (!match) continue;
    if (isRunning(Number(match[2]), match[3]!)) continue;
    const leftover = join(dirname(target), name);
    if (match[1] === 'old' && !existsSync(target)) renameSync(leftover, target);
    else rmSync(leftover, { recursive: true, force: true });
  }
}

/**
 * Writes a file atomically: a draft next to it, flushed to disk, then renamed to `path`. The draft is deleted where this fails.
 * @param fill calls `write` for one part after another
 */
export function writeFile(path: string, fill: (write: (bytes: Uint8Array) => void) => void): void {
  const target = targetOf(path);
  const draft = temporaryName(target, 'new');
  let fd: number | undefined;
  let opened = false;
  try {
    makeDirectory(dirname(target));
    recoverDirectory(target);
    if (existsSync(target) && !statSync(target).isFile())
      throw new GraftError('usage', 'The path exists already and is not a regular file', {
        place: path,
        hint: 'Choose another path',
      });
    const open = openSync(draft, 'wx');
    fd = open;
    opened = true;
    fill((bytes) => writeAll(open, bytes));
    fsyncSync(open);
    closeSync(open);
    fd = undefined;
    renameSync(draft, target);
    flushEntry(dirname(target));
  } catch (error) {
    if (fd !== undefined) closeSync(fd);
    const explained = fileError(error, path, 'written');
    if (opened) rmSync(draft, { force: true });
    throw explained;
  }
}

/** Writes text atomically, as `writeFile` does. */
export const writeText = (path: string, text: string): void => writeFile(path, (write) => write(Buffer.from(text)));

function writeAll(fd: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.byteLength; )
    done += writeSync(fd, bytes, done, Math.min(2 ** 30, bytes.byteLength - done));
}

/** Returns the path to replace: what a symbolic link points to, so that the link stays. */
function targetOf(path: string): string {
  return existsSync(path) ? realpathSync(path) : resolve(path);
}

let counter = 0;

/** Returns a path next to `target` whose name includes the process that uses it: `.model.new-4711-12345678-0k3`. */
function temporaryName(target: string, kind: 'new' | 'old'): string {
  const unique = `${(counter++).toString(36)}${Math.random().toString(36).slice(2, 8)}`;
  return join(dirname(target), `.${basename(target)}.${kind}-${process.pid}-${processStamp(process.pid)}-${unique}`);
}

/** Flushes a directory and its contents to disk (fsync), so that a later rename cannot reach the disk before them. */
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
