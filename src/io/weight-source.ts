import { GraftError, nearest } from '../base/index.ts';
import { type DType, dtypes } from '../tensor/index.ts';
import { brief, type InputFile } from './input-file.ts';

/**
 * GGUF's quantised block formats that Graft computes with: ggml's type number, elements in a block and bytes of a block.
 * Blocks run along the last axis. Source: ggml `ggml-common.h`; layouts in reference/serving-and-distributed.md §3.3.
 */
export const blockFormats = {
  q4_0: { id: 2, elements: 32, bytes: 18 },
  q4_1: { id: 3, elements: 32, bytes: 20 },
  q5_0: { id: 6, elements: 32, bytes: 22 },
  q5_1: { id: 7, elements: 32, bytes: 24 },
  q8_0: { id: 8, elements: 32, bytes: 34 },
  q4_k: { id: 12, elements: 256, bytes: 144 },
  q5_k: { id: 13, elements: 256, bytes: 176 },
  q6_k: { id: 14, elements: 256, bytes: 210 },
} as const;

export type BlockFormat = keyof typeof blockFormats;

/** Formats by ggml's type number. Source: ggml `enum ggml_type`. */
export const ggmlFormats: ReadonlyMap<number, DType | BlockFormat> = new Map<number, DType | BlockFormat>([
  ...(
    Object.entries({
      float32: 0,
      float16: 1,
      int8: 24,
      int16: 25,
      int32: 26,
      int64: 27,
      float64: 28,
      bfloat16: 30,
    }) as [DType, number][]
  ).map(([name, id]) => [id, name] as const),
  ...(Object.entries(blockFormats) as [BlockFormat, { id: number }][]).map(([name, { id }]) => [id, name] as const),
]);

export const isBlockFormat = (format: DType | BlockFormat): format is BlockFormat =>
  Object.hasOwn(blockFormats, format);

/** One stored tensor. */
export interface WeightEntry {
  readonly name: string;
  /** In torch's order: the last axis is contiguous. */
  readonly shape: readonly number[];
  readonly format: DType | BlockFormat;
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

/** Bytes that a tensor takes, or a sentence's end that says why it cannot be. */
export function bytesOf(format: DType | BlockFormat, shape: readonly number[]): number | string {
  const elements = elementsOf(shape);
  if (elements === undefined) return `has the shape ${brief(shape)} of more than 2^53 elements`;
  if (!isBlockFormat(format)) return elements * dtypes[format].bytes;
  const block = blockFormats[format];
  const row = shape.at(-1) ?? 1;
  if (row % block.elements !== 0)
    return `has rows of ${row} elements, which is not a whole number of ${format} blocks of ${block.elements}`;
  return (elements / block.elements) * block.bytes;
}
