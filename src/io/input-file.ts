import { closeSync, fstatSync, openSync, readSync, statSync } from 'node:fs';
import { fileError, GraftError } from '../base/index.ts';

/** Linux reads at most 2^31 - 4096 bytes in one call, Node at most 2^31 - 1: whole tensors may be larger. */
const CHUNK = 2 ** 30;

/**
 * A regular file, open for reads at given places. It never reads past the end and notices when the file was written to
 * after it was opened. (A file that was replaced by rename stays readable: the old one is what is open.)
 */
export class InputFile implements Disposable {
  readonly path: string;
  /** Bytes, as of opening. */
  readonly size: number;
  #fd: number | undefined;
  readonly #written: bigint;

  /** @throws GraftError `input` or `environment` when there is no such file, it is not a regular file or may not be read. */
  constructor(path: string) {
    this.path = path;
    try {
      const kind = statSync(path); // before opening: opening a pipe would wait for its other end
      if (!kind.isFile())
        throw new GraftError('input', `This is ${kind.isDirectory() ? 'a directory' : 'not a regular file'}`, {
          place: path,
          hint: 'Name a file',
        });
      this.#fd = openSync(path, 'r');
      const stat = fstatSync(this.#fd, { bigint: true });
      this.size = Number(stat.size);
      this.#written = stat.mtimeNs;
    } catch (error) {
      this[Symbol.dispose]();
      throw fileError(error, path, 'read');
    }
  }

  /**
   * Fills `into` with the bytes that start at byte `at` of the file.
   * @throws GraftError `input` when they are not all there, or when the file was written to since it was opened.
   */
  read(into: Uint8Array, at: number): void {
    const fd = this.#fd;
    if (fd === undefined) throw new GraftError('state', 'The file was read after it was closed', { place: this.path });
    try {
      for (let done = 0; done < into.byteLength; ) {
        const n = readSync(fd, into, done, Math.min(CHUNK, into.byteLength - done), at + done);
        if (n === 0)
          throw damaged(this.path, `The file ends at byte ${at + done}, ${into.byteLength - done} bytes too early`);
        done += n;
      }
      const now = fstatSync(fd, { bigint: true });
      if (now.mtimeNs !== this.#written || Number(now.size) !== this.size)
        throw new GraftError('input', 'The file was changed while it was being read', {
          place: this.path,
          hint: 'Let nothing write to it, then start again',
        });
    } catch (error) {
      throw fileError(error, this.path, 'read');
    }
  }

  /** Closes the file; more than once does no harm. */
  [Symbol.dispose](): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
  }
}

/** An `input` error about a file whose contents are wrong. */
export function damaged(
  path: string,
  problem: string,
  hint = 'Fetch or write the file again: it is damaged',
): GraftError {
  return new GraftError('input', problem, { place: path, hint });
}

/** A name or value from a file as one short piece of text, however long it is there. */
export function brief(value: unknown): string {
  if (typeof value === 'bigint') return String(value);
  const text = ArrayBuffer.isView(value)
    ? 'an array'
    : (JSON.stringify(Array.isArray(value) ? value.slice(0, 9) : value) ?? 'nothing');
  return text.length > 80 ? `${text.slice(0, 77)}…` : text;
}

/** What a file that is not of the expected format seems to be, from its first bytes, to be said in an error. */
export function guessFormat(head: Uint8Array): string {
  const text = Buffer.from(head.buffer, head.byteOffset, Math.min(head.byteLength, 40)).toString('latin1');
  if (text.startsWith('version https://git-lfs'))
    return 'it is a git-lfs pointer: run `git lfs pull` where it came from';
  if (text.startsWith('GGUF')) return 'it is a GGUF file: name it *.gguf';
  if (text.startsWith('PK\x03\x04'))
    return 'it looks like a PyTorch pickle or another zip file: convert it to safetensors';
  if (/^\s*<(!doctype|html)/i.test(text)) return 'it is a web page: the download went wrong';
  if (/^.{8}\s*\{"/s.test(text)) return 'it looks like a safetensors file';
  const shown = /^[\x20-\x7e]{4}/.test(text)
    ? JSON.stringify(text.slice(0, 4))
    : Buffer.from(head.subarray(0, 4)).toString('hex');
  return head.byteLength === 0 ? 'it is empty' : `it starts with ${shown}`;
}
