/** Whether files are what they were. */
import { createHash } from 'node:crypto';
import { readdirSync, statSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';

/**
 * Path, size and time of the files on disk: it changes when they are written again.
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
      return [file, stat?.size, stat?.mtimeMs];
    }),
  );
}

/** A digest of the files of an adapter, those of its parts included. */
export async function digestOf(dir: string): Promise<string> {
  const hash = createHash('sha256');
  const entries = await readdir(dir, { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
  for (const file of files.sort()) hash.update(`${file.slice(dir.length)}\0`).update(await readFile(file));
  return hash.digest('hex');
}
