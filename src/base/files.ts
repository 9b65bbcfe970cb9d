import { existsSync, mkdirSync, readdirSync, realpathSync, statfsSync, statSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { type ErrorKind, GraftError } from './errors.ts';
import { nearest } from './nearest.ts';

/** Kind, problem and hint of the error codes of `node:fs`. */
const systemErrors: Readonly<Record<string, readonly [ErrorKind, string, string]>> = {
  ENOENT: ['input', 'There is no such file or directory', 'Check the path'],
  ENOTDIR: ['usage', 'A parent of this path is a file, not a directory', 'Choose another path'],
  EISDIR: ['input', 'This is a directory, not a file', 'Name a file'],
  EACCES: ['environment', 'Permission denied', 'Change its permissions, or run as a user who has them'],
  EPERM: ['environment', 'Permission denied', 'Change its permissions, or run as a user who has them'],
  EEXIST: ['usage', 'A file or directory with this name exists already', 'Choose another path'],
  EROFS: ['environment', 'The file system is read-only', 'Choose another directory'],
  EMFILE: ['environment', 'Too many files are open', 'Raise the limit with `ulimit -n 4096`'],
  EIO: ['environment', 'The disk reported an input/output error', 'Check the disk'],
  ENOSPC: ['environment', 'The disk is full', 'Free some space or choose another directory, then run it again'],
  EDQUOT: [
    'environment',
    'The disk quota is used up',
    'Free some space or choose another directory, then run it again',
  ],
  EFBIG: ['environment', 'The file is larger than the file system allows', 'Choose another directory'],
};

/**
 * Returns an error of `node:fs` as a GraftError that names the file; any other value is returned unchanged.
 * @param action what failed, as a past participle: `read`, `written`, `locked`
 */
export function fileError(error: unknown, path: string, action: string): unknown {
  const code = (error as NodeJS.ErrnoException | null)?.code;
  if (error instanceof GraftError || !(error instanceof Error) || !code?.startsWith('E') || !('syscall' in error))
    return error;
  const data = { code };
  const [kind, problem, hint] = systemErrors[code] ?? [
    'environment',
    `The operating system reported the error ${code}`,
    'Check that the path can be used',
  ];
  return new GraftError(kind, `${problem}${code === 'ENOSPC' ? freeSpace(path) : ''}: it could not be ${action}`, {
    place: path,
    hint,
    data,
    cause: error,
  });
}

/** What is free on the disk that a path leads to, through links and mounts; it need not exist. */
function freeSpace(path: string): string {
  try {
    const missing = !existsSync(path);
    const target = missing ? dirname(path) : realpathSync(path);
    const { bavail, bsize, files, ffree } = statfsSync(target);
    const free = `${Math.floor((bavail * bsize) / 1e6)} MB`;
    return files > 0 && ffree === 0 ? ` (${free}, but no more files are free)` : ` (${free} free)`;
  } catch {
    return '';
  }
}

/**
 * Creates a directory and its missing parents; an existing directory is left unchanged. (Node's own `recursive` never
 * returns on a file system such as /proc, where nothing can be created.)
 * @returns those that were created, the outermost first
 * @throws GraftError `usage` where a file has this name, `environment` for missing permissions
 */
export function makeDirectory(path: string): readonly string[] {
  const isDirectory = () => statSync(path, { throwIfNoEntry: false })?.isDirectory();
  try {
    if (isDirectory()) return [];
    const above = dirname(path) === path ? [] : makeDirectory(dirname(path));
    mkdirSync(path);
    return [...above, path];
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST' && isDirectory()) return []; // another process created it first
    throw fileError(error, path, 'created as a directory');
  }
}

/** Returns the existing path in the same directory whose name is nearest to that of the missing `path`, for "did you mean". */
export function nearestPath(path: string): string | undefined {
  try {
    const name = nearest(basename(path), readdirSync(dirname(path)));
    return name && join(dirname(path), name);
  } catch {
    return undefined;
  }
}
