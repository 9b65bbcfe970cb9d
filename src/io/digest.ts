import { createHash, type Hash } from 'node:crypto';
import { closeSync, openSync, readdirSync, readSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileError } from '../base/index.ts';

/** Bytes read at a time, and the size up to which a file is read whole; of a larger one, every 64th piece and the last are. */
const [pieceBytes, wholeBytes] = [2 ** 20, 2 ** 30];

/**
 * Returns a digest of the content of a file, or of all files below a directory with their names, whatever the path is called: 16
 * hexadecimal digits of SHA-256. Of a file above 1 GiB, its size and a part of its bytes count.
 * @param include the files of a directory that count, by their path in it; default: all
 * @throws GraftError 'input' or 'environment' for a file that cannot be read
 */
export function digestOfPath(path: string, include: (name: string) => boolean = () => true): string {
  const hash = createHash('sha256');
  try {
    if (!statSync(path).isDirectory()) updateWithFile(hash, path);
    else {
      const names = (readdirSync(path, { recursive: true }) as string[]).filter(include).sort();
      for (const name of names) {
        if (!statSync(join(path, name)).isFile()) continue;
        hash.update(`${name}\n`);
        updateWithFile(hash, join(path, name));
      }
    }
  } catch (error) {
    throw fileError(error, path, 'read');
  }
  return hash.digest('hex').slice(0, 16);
}

function updateWithFile(hash: Hash, file: string): void {
  const fd = openSync(file, 'r');
  try {
    const { size } = statSync(file);
    hash.update(`${size}\n`);
    const step = size > wholeBytes ? 64 * pieceBytes : pieceBytes;
    const piece = Buffer.allocUnsafe(Math.min(size, pieceBytes));
    const starts = Array.from({ length: Math.ceil(size / step) }, (_, i) => i * step);
    if (step > pieceBytes) starts.push(size - pieceBytes);
    for (const start of starts) {
      const count = readSync(fd, piece, 0, piece.length, start);
      hash.update(piece.subarray(0, count));
    }
  } finally {
    closeSync(fd);
  }
}
