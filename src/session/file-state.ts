/** Whether files are what they were. */
import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';

/**
 * Path, size, time and inode of the files on disk: it changes when they are written again, or others take their place.
 * @param counts names of the files that count; default: all, those in folders too
 */
export function stateOf(path: string, counts?: RegExp): string {
  const isDirectory = statSync(path, { throwIfNoEntry: false })?.isDirectory();
  const all = isDirectory ? readdirSync(path, { recursive: !counts, encoding: 'utf8' }) : [];
  const names = counts ? all.filter((name) => counts.test(name)) : all;
  const files = isDirectory ? names.map((name) => join(path, name)) : [path];
  return JSON.stringify(
    files.map((file) => {
      const stat = statSync(file, { throwIfNoEntry: false });
      return [file, stat?.size, stat?.mtimeMs, stat?.ino];
    }),
  );
}
