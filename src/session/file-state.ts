/** Whether files are what they were. */
import { closeSync, fstatSync, openSync, read, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';

const readPiece = promisify(read);

/** Bytes that are read at once. */
const pieceBytes = 2 ** 20;

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

/**
 * Reads the files of an adapter, those of its parts included, so that who reads them next does not wait for the disk. All reads are asked for
 * at once: between two passes this thread would ask for one only.
 */
export async function readAhead(dir: string): Promise<void> {
  const ignored = new Uint8Array(pieceBytes);
  const files = readdirSync(dir, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  await Promise.all(
    files.map(async ({ parentPath, name }) => {
      const file = openSync(join(parentPath, name), 'r');
      try {
        const pieces = Math.ceil(fstatSync(file).size / pieceBytes);
        await Promise.all(
          Array.from({ length: pieces }, (_, i) => readPiece(file, ignored, 0, pieceBytes, i * pieceBytes)),
        );
      } finally {
        closeSync(file);
      }
    }),
  );
}
