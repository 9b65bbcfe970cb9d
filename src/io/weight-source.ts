import { GraftError, nearest } from '../base/index.ts';
import { type FormatName, formats } from '../quant/index.ts';
import { brief, type InputFile } from './input-file.ts';

/** One stored tensor. */
export interface WeightEntry {
  readonly name: string;
  /** In torch's order: the last axis is contiguous. */
  readonly shape: readonly number[];
  readonly format: FormatName;
  /** Its size in the file. */
  readonly bytes: number;
}

export type NumberArray =
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Uint32Array
  | Int32Array
  | Float32Array
  | Float64Array
  | BigUint64Array
  | BigInt64Array;

/** A value of a file's metadata: text in safetensors; typed in GGUF, where 64-bit integers are numbers when they fit exactly. */
export type MetadataValue = string | number | bigint | boolean | NumberArray | string[] | boolean[] | MetadataValue[];

/** Stored tensors by name, whatever the format: what loading a model reads from. */
export interface WeightSource extends Disposable {
  /** The file or directory that was opened. */
  readonly path: string;
  readonly entries: ReadonlyMap<string, WeightEntry>;
  readonly metadata: ReadonlyMap<string, MetadataValue>;
  /**
   * Fills `into` with the tensor's raw little-endian bytes.
   * @param from byte of the tensor to begin at; without it `into` must be as long as the whole tensor
   * @throws GraftError `input` when the file was changed or cut since it was opened; `usage` for an unknown name or a
   *   buffer of another size; `state` after disposal.
   */
  read(name: string, into: Uint8Array, from?: number): void;
}

/** An entry and where its bytes are. */
export interface StoredEntry extends WeightEntry {
  readonly file: InputFile;
  /** Byte in `file` where it starts. */
  readonly at: number;
}

/** The one WeightSource: entries in one or several open files, which it owns. */
export class StoredWeights implements WeightSource {
  readonly path: string;
  readonly entries: ReadonlyMap<string, StoredEntry>;
  readonly metadata: ReadonlyMap<string, MetadataValue>;
  readonly #files: readonly InputFile[];

  constructor(
    path: string,
    files: readonly InputFile[],
    entries: ReadonlyMap<string, StoredEntry>,
    metadata: ReadonlyMap<string, MetadataValue>,
  ) {
    this.path = path;
    this.#files = files;
    this.entries = entries;
    this.metadata = metadata;
  }

  read(name: string, into: Uint8Array, from?: number): void {
    const entry = this.entries.get(name);
    if (!entry) {
      const close = nearest(name, this.entries.keys());
      throw new GraftError('usage', `There is no tensor ${brief(name)} among the ${this.entries.size} here`, {
        place: this.path,
        ...(close && { hint: `The nearest is ${brief(close)}` }),
      });
    }
    if (from === undefined ? into.byteLength !== entry.bytes : !(from >= 0 && from + into.byteLength <= entry.bytes))
      throw new GraftError(
        'usage',
        `Tensor ${brief(name)} has ${entry.bytes} bytes, the buffer for it ${into.byteLength}${from === undefined ? '' : ` from byte ${from}`}`,
        {
          place: entry.file.path,
        },
      );
    entry.file.read(into, entry.at + (from ?? 0));
  }

  [Symbol.dispose](): void {
    for (const file of this.#files) file[Symbol.dispose]();
  }
}

/** Elements of a tensor, or undefined beyond 2^53 - 1. */
export function elementsOf(shape: readonly number[]): number | undefined {
  let product = 1;
  for (const size of shape) product *= size; // once above 2^53 it can only come back to 0, for a tensor without elements
  return Number.isSafeInteger(product) ? product : undefined;
}

/** Bytes that a tensor takes in a file, or the end of a sentence that says why it cannot exist. */
export function bytesOf(format: FormatName, shape: readonly number[]): number | string {
  const elements = elementsOf(shape);
  if (elements === undefined) return `has the shape ${brief(shape)} of more than 2^53 elements`;
  const { blockElements, blockBytes } = formats[format];
  const rowLength = shape.at(-1) ?? 1;
  if (rowLength % blockElements !== 0)
    return `has rows of ${rowLength} elements, which is not a whole number of ${format} blocks of ${blockElements}`;
  return (elements / blockElements) * blockBytes;
}
