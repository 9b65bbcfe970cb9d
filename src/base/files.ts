import { mkdirSync, readdirSync, statfsSync, statSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { type ErrorKind, GraftError } from './errors.ts';
import { nearest } from './nearest.ts';

const causes: Record<string, readonly [ErrorKind, string, string]> = {
  ENOENT: ['input', 'There is no such file or directory', 'Check the path'],
  ENOTDIR: ['usage', 'A part of this path is a file, not a directory', 'Choose another path'],
  EISDIR: ['input', 'This is a directory, not a file', 'Name a file'],
  EACCES: ['environment', 'Permission denied', 'Run as a user who may, or change its permissions'],
  EPERM: ['environment', 'Permission denied', 'Run as a user who may, or change its permissions'],
  EEXIST: ['usage', 'There is already something with this name', 'Choose another path'],
  EROFS: ['environment', 'The file system is read-only', 'Choose another directory'],
  EMFILE: ['environment', 'Too many files are open', 'Raise the limit with `ulimit -n 4096`'],
  EIO: ['environment', 'The disk reports an error', 'Check the disk'],
  ENOSPC: ['environment', 'The disk is full', 'Free some space or choose another directory, then run it again'],
  EDQUOT: [
    'environment',
    'The disk quota is used up',
    'Free some space or choose another directory, then run it again',
  ],
  EFBIG: ['environment', 'The file is larger than the file system allows', 'Choose another directory'],
};

/**
 * Turns an error of `node:fs` into a GraftError that names the file; anything else comes back as it is.
 * @param doing past participle: `read`, `written`, `locked`
 */
export function fileError(error: unknown, path: string, doing: string): unknown {
  const code = (error as NodeJS.ErrnoException | null)?.code;
  if (error instanceof GraftError || !(error instanceof Error) || !code?.startsWith('E') || !('syscall' in error))
    return error;
  const data = { code };
  const [kind, problem, hint] = causes[code] ?? [
    'environment',
    `The system said ${code}`,
    'See that the path is usable',
  ];
  return new GraftError(kind, `${problem}${code === 'ENOSPC' ? freeSpace(path) : ''}: it could not be ${doing}`, {
    place: path,
    hint,
    data,
    cause: error,
  });
}

function freeSpace(path: string): string {
  try {
    const { bavail, bsize } = statfsSync(dirname(path));
    return ` (${Math.floor((bavail * bsize) / 1e6)} MB free)`;
  } catch {
    return '';
  }
}

/**
 * Makes a directory and those above it; one that is there already is left as it is. (Node's own `recursive` never ends
 * on a file system such as /proc, where nothing can be made.)
 * @throws GraftError `usage` where a file is in the way, `environment` for missing rights
 */
export function makeDirectory(path: string): void {
  const isDirectory = () => statSync(path, { throwIfNoEntry: false })?.isDirectory();
  try {
    if (isDirectory()) return;
    if (dirname(path) !== path) makeDirectory(dirname(path));
    mkdirSync(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST' && isDirectory()) return; // another process was faster
    throw fileError(error, path, 'made as a directory');
  }
}

/** The path beside `path`, which is not there, whose name is most like it: for "did you mean". */
export function nearestPath(path: string): string | undefined {
  try {
    const name = nearest(basename(path), readdirSync(dirname(path)));
    return name && join(dirname(path), name);
  } catch {
    return undefined;
  }
}
