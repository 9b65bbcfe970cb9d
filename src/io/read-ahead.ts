/** Files that are read before they are needed, while the thread that will need them does something else. */
import { type BigIntStats, closeSync, fstatSync, openSync, read, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';

const readPiece = promisify(read);

/** Bytes that are read at once. */
const pieceBytes = 2 ** 20;

/** Bytes that are held at most: of a directory with more, the files are only brought into the system's cache. */
const maxHeld = 2 ** 26;

/** Which file it is, its size, and when it was last written to. */
export const stateOfFile = ({ dev, ino, size, mtimeNs }: BigIntStats): string => `${dev} ${ino} ${size} ${mtimeNs}`;

/** One buffer for all that is ever held: JavaScript frees late what it sees, and adapters come and go while others are served. */
let buffer = new Uint8Array(0);
const held = new Map<string, Uint8Array>();
let isTaken = false;

/** The bytes of a file in this state, while they are held. */
export const heldBytes = (state: string): Uint8Array | undefined => held.get(state);

/**
 * Reads the files of a directory, those in folders too. Until what it returns is disposed, whoever opens them finds their bytes in memory; one
 * caller at a time has them so. All reads are asked for at once: a thread that is busy meanwhile would ask for one only.
 */
export async function readAhead(dir: string): Promise<Disposable> {
  const paths = readdirSync(dir, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map(({ parentPath, name }) => join(parentPath, name));
  const descriptors: number[] = [];
  const stateNow = (descriptor: number) => fstatSync(descriptor, { bigint: true });
  let isHolder = false;
  const letGo = () => {
    if (!isHolder) return;
    held.clear();
    [isHolder, isTaken] = [false, false];
  };
  try {
    for (const path of paths) descriptors.push(openSync(path, 'r'));
    const states = descriptors.map(stateNow);
    const total = states.reduce((sum, { size }) => sum + Number(size), 0);
    if (total <= maxHeld && !isTaken) [isHolder, isTaken] = [true, true];
    if (isHolder && buffer.byteLength < total) buffer = new Uint8Array(total);
    const ignored = isHolder ? undefined : new Uint8Array(pieceBytes);
    let start = 0;
    const files = states.map((state, i) => {
      const size = Number(state.size);
      const bytes = ignored ?? buffer.subarray(start, start + size);
      start += size;
      const pieces = Array.from({ length: Math.ceil(size / pieceBytes) }, (_, p) => p * pieceBytes).map(async (at) => {
        const length = Math.min(pieceBytes, size - at);
        return (await readPiece(descriptors[i]!, bytes, ignored ? 0 : at, length, at)).bytesRead === length;
      });
      return { state: stateOfFile(state), bytes, pieces };
    });
    // What cannot be read is told to whoever opens it.
    await Promise.allSettled(files.flatMap(({ pieces }) => pieces));
    for (const [i, { state, bytes, pieces }] of files.entries()) {
      const isWhole = (await Promise.allSettled(pieces)).every((piece) => piece.status === 'fulfilled' && piece.value);
      if (isHolder && isWhole && stateOfFile(stateNow(descriptors[i]!)) === state) held.set(state, bytes);
    }
    return { [Symbol.dispose]: letGo };
  } catch (error) {
    letGo();
    throw error;
  } finally {
    for (const descriptor of descriptors) closeSync(descriptor);
  }
}
