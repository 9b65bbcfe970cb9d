import { GraftError, nearest } from '../base/index.ts';
import { type FormatName, formats } from '../quant/index.ts';
import { type DType, dtypes, type Tensor } from '../tensor/index.ts';
import { brief, type InputFile } from './input-file.ts';

/** A stored tensor: its name, shape and format. */
export interface WeightEntry {
  /** Its name in the file. */
  readonly name: string;
  /** Axes in torch's order: the last one is contiguous. */
  readonly shape: readonly number[];
  /** Its number format: an element type, or a block format of GGUF. */
  readonly format: FormatName;
  /** Its size in the file. */
  readonly bytes: number;
}

/** A typed array of a file's metadata. */
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

/**
 * A value of a file's metadata: text in safetensors; typed in GGUF, whose 64-bit integers are numbers where these are
 * exact.
 */
export type MetadataValue = string | number | bigint | boolean | NumberArray | string[] | boolean[] | MetadataValue[];

/** The stored tensors of a model by name, of any file format. */
export interface WeightSource extends Disposable {
  /** The file or directory that was opened. */
  readonly path: string;
  /** The stored tensors by name. */
  readonly entries: ReadonlyMap<string, WeightEntry>;
  /** The metadata of the file. */
  readonly metadata: ReadonlyMap<string, MetadataValue>;
  /**
   * Fills `into` with the tensor's little-endian bytes.
   * @param from byte of the tensor to start at; without it `into` must have the size of the whole tensor
   * @throws GraftError `input` when the file was changed or truncated since it was opened; `usage` for an unknown name or a
   *   buffer of another size; `state` after disposal.
   */
  read(name: string, into: Uint8Array, from?: number): void;
  /** Returns the tensor's bytes where they are in memory already, for a moment (`readAhead`); undefined where they have to be read. */
  inMemory?(name: string): Uint8Array | undefined;
  /**
   * Returns the tensor's bytes as a tensor on the file itself, which takes memory only while it is used; undefined where they do not
   * stand in a file in this form.
   */
  map?(name: string, shape: readonly number[], dtype: DType): Tensor | undefined;
}

/** A stored tensor with the place of its bytes. */
export interface StoredEntry extends WeightEntry {
  readonly file: InputFile;
  /** Offset in `file` of its first byte. */
  readonly at: number;
}

/** The stored tensors of one or several open files, which disposing closes. */
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
      throw new GraftError('usage', `None of the ${this.entries.size} tensors is named ${brief(name)}`, {
        place: this.path,
        ...(close && { hint: `Did you mean ${brief(close)}?` }),
      });
    }
    if (from === undefined ? into.byteLength !== entry.bytes : !(from >= 0 && from + into.byteLength <= entry.bytes))
      throw new GraftError(
        'usage',
        `Tensor ${brief(name)} has ${entry.bytes} bytes, and the buffer ${into.byteLength}${from === undefined ? '' : ` from byte ${from}`}`,
        {
          place: entry.file.path,
        },
      );
    entry.file.read(into, entry.at + (from ?? 0));
  }

  inMemory(name: string): Uint8Array | undefined {
    const { file, at, bytes } = this.entries.get(name)!;
    return file.bytesInMemory(at, bytes);
  }

  map(name: string, shape: readonly number[], dtype: DType): Tensor | undefined {
    const { file, at } = this.entries.get(name)!;
    return at % dtypes[dtype].bytes === 0 ? file.map(at, shape, dtype) : undefined;
  }

  [Symbol.dispose](): void {
    for (const file of this.#files) file[Symbol.dispose]();
  }
}

/** Returns the number of elements of a tensor, or undefined beyond 2^53 - 1. */
export function elementsOf(shape: readonly number[]): number | undefined {
  let product = 1;
  for (const size of shape) product *= size; // once above 2^53 it can only come back to 0, for a tensor without elements
  return Number.isSafeInteger(product) ? product : undefined;
}

/** Returns the bytes of a tensor in a file, or the end of a sentence that says why there is no such tensor. */
export function bytesOf(format: FormatName, shape: readonly number[]): number | string {
  const elements = elementsOf(shape);
  if (elements === undefined) return `has the shape ${brief(shape)} of more than 2^53 elements`;
  const { blockElements, blockBytes } = formats[format];
  const rowLength = shape.at(-1) ?? 1;
  if (rowLength % blockElements !== 0)
    return `has rows of ${rowLength} elements, which is not a whole number of ${format} blocks of ${blockElements}`;
  return (elements / blockElements) * blockBytes;
}
