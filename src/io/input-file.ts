import { closeSync, fstatSync, openSync, readSync, statSync } from 'node:fs';
import { fileError, GraftError } from '../base/index.ts';
import { type DType, Tensor } from '../tensor/index.ts';
import { heldBytes, stateOfFile } from './read-ahead.ts';

/** Bytes of one read. Linux reads at most 2^31 - 4096 bytes in one call, Node at most 2^31 - 1; a tensor may be larger. */
const CHUNK = 2 ** 30;

/** Milliseconds: more than a step of the clock that file systems take times from. */
const settledMs = 1_000;

/**
 * A regular file that is open for reading at any offset. Reads past its end, or after it was written to, throw. (When another
 * file is renamed to its path, the open one stays readable.)
 */
export class InputFile implements Disposable {
  readonly path: string;
  /** Bytes, as of opening. */
  readonly size: number;
  /** Which file it is, and when it was last written to: two that are open with the same state have the same bytes. */
  readonly state: string;
  /** Whether it was last written to long enough ago that a later write has another time. */
  readonly isSettled: boolean;
  #fd: number | undefined;
  readonly #modified: bigint;

  /**
   * @throws GraftError `input` or `environment` when there is no such file, it is not a regular file or may not be read.
   */
  constructor(path: string) {
    this.path = path;
    try {
      const before = statSync(path); // before opening it: opening a pipe waits for its other end
      if (!before.isFile())
        throw new GraftError('input', `This is ${before.isDirectory() ? 'a directory' : 'not a regular file'}`, {
          place: path,
          hint: 'Give the path of a file',
        });
      this.#fd = openSync(path, 'r');
      const stat = fstatSync(this.#fd, { bigint: true });
      this.size = Number(stat.size);
      this.#modified = stat.mtimeNs;
      this.state = stateOfFile(stat);
      this.isSettled = Date.now() - Number(stat.mtimeMs) > settledMs;
    } catch (error) {
      this[Symbol.dispose]();
      throw fileError(error, path, 'read');
    }
  }

  /**
   * Fills `into` with the bytes that start at byte `at` of the file.
   * @throws GraftError `input` when the file ends before that, or when it was written to since it was opened.
   */
  read(into: Uint8Array, at: number): void {
    const fd = this.#fd;
    if (fd === undefined) throw new GraftError('state', 'The file was read after it was closed', { place: this.path });
    const held = this.bytesInMemory(at, into.byteLength);
    if (held) {
      into.set(held);
      return;
    }
    try {
      for (let done = 0; done < into.byteLength; ) {
        const n = readSync(fd, into, done, Math.min(CHUNK, into.byteLength - done), at + done);
        if (n === 0)
          throw damaged(this.path, `The file ends at byte ${at + done}, ${into.byteLength - done} bytes too early`);
        done += n;
      }
      const now = fstatSync(fd, { bigint: true });
      if (now.mtimeNs !== this.#modified || Number(now.size) !== this.size)
        throw new GraftError('input', 'The file was changed while it was being read', {
          place: this.path,
          hint: 'Make sure that nothing writes to it, and start again',
        });
    } catch (error) {
      throw fileError(error, this.path, 'read');
    }
  }

  /** Returns the bytes from byte `at` on where they are in memory already (read-ahead.ts); undefined where they have to be read. */
  bytesInMemory(at: number, length: number): Uint8Array | undefined {
    const held = heldBytes(this.state);
    return held && at + length <= held.byteLength ? held.subarray(at, at + length) : undefined;
  }

  /** Returns a tensor on bytes of the file, which is never written to. It outlives the open file, and the name of the file. */
  map(at: number, shape: readonly number[], dtype: DType): Tensor {
    if (this.#fd === undefined)
      throw new GraftError('state', 'The file was mapped after it was closed', { place: this.path });
    return Tensor.mapped(this.#fd, at, shape, dtype, false);
  }

  /** Closes the file; may be called more than once. */
  [Symbol.dispose](): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
  }
}

/** Returns an `input` error about a file with wrong contents. */
export function damaged(
  path: string,
  problem: string,
  hint = 'The file is damaged: download or write it again',
): GraftError {
  return new GraftError('input', problem, { place: path, hint });
}

/** Returns a name or value from a file as text of at most 80 characters, for a message. */
export function brief(value: unknown): string {
  if (typeof value === 'bigint') return String(value);
  const text = ArrayBuffer.isView(value)
    ? 'an array'
    : (JSON.stringify(Array.isArray(value) ? value.slice(0, 9) : value) ?? 'nothing');
  return text.length > 80 ? `${text.slice(0, 77)}…` : text;
}

/** Returns what a file of an unexpected format seems to be, from its first bytes, for an error. */
export function guessFormat(head: Uint8Array): string {
  const text = Buffer.from(head.buffer, head.byteOffset, Math.min(head.byteLength, 40)).toString('latin1');
  if (text.startsWith('version https://git-lfs'))
    return 'it is a git-lfs pointer: run `git lfs pull` in its repository';
  if (text.startsWith('GGUF')) return 'it is a GGUF file: rename it to *.gguf';
  if (text.startsWith('PK\x03\x04'))
    return 'it looks like a PyTorch pickle or another zip file: convert it to safetensors';
  if (/^\s*<(!doctype|html)/i.test(text)) return 'it is a web page: the download failed';
  if (/^.{8}\s*\{"/s.test(text)) return 'it looks like a safetensors file';
  const shown = /^[\x20-\x7e]{4}/.test(text)
    ? JSON.stringify(text.slice(0, 4))
    : Buffer.from(head.subarray(0, 4)).toString('hex');
  return head.byteLength === 0 ? 'it is empty' : `it starts with ${shown}`;
}
