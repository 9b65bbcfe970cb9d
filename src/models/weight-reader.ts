import { GraftError } from '../base/index.ts';
import type { WeightEntry, WeightSource } from '../io/index.ts';
import { type BlockFormat, type FormatName, formats, isBlockFormat, type Quantization } from '../quant/index.ts';
import { currentDevice, type DType, detachFromScopes, dtypes, host, ops, scope, Tensor } from '../tensor/index.ts';

/** A stored tensor, and the number of heads whose rows GGUF interleaves (`GgufNames.interleavedHeads`). */
export interface StoredWeight {
  readonly entry: WeightEntry;
  readonly interleavedHeads: number | undefined;
  /** How the file holds it as integers, [out, in] also where the checkpoint stores it transposed. */
  readonly integers?: Quantization | undefined;
  /** Rows that the model has, where they are fewer or more than those of the file: new ones are zeros. Read as `dense` only. */
  readonly modelRows?: number;
}

/** Some rows of a tensor: of its first dimension; a vector is one row. */
export interface Rows {
  readonly first: number;
  readonly count: number;
}

/** How many rows a shape has. */
export const rowsOf = (shape: readonly number[]): number => (shape.length > 1 ? shape[0]! : 1);

/** Size of the read buffer, at most; a row that is longer is read at once. */
const maxBufferBytes = 2 ** 23;

/** Elements of two tensors that are compared at once. */
const comparedElements = 2 ** 20;

/**
 * Reads stored tensors, some rows at a time, so that loading takes little memory besides the result, which is on the device of new
 * tensors; the rows are read and converted on the CPU. All reads share a buffer for each element type: memory that JavaScript has a view of is not freed before the event loop's next turn.
 */
export class WeightReader implements Disposable {
  readonly #source: WeightSource;
  /** As much as the largest tensor needs: the garbage collector runs the more often, the more bytes JavaScript has views of. */
  readonly #bufferBytes: number;
  readonly #buffers = new Map<DType, { readonly tensor: Tensor; readonly bytes: Uint8Array }>();

  constructor(source: WeightSource) {
    this.#source = source;
    const largest = source.entries.values().reduce((most, { bytes }) => Math.max(most, bytes), 8);
    this.#bufferBytes = Math.min(maxBufferBytes, 8 * Math.ceil(largest / 8));
  }

  /** Returns the stored bytes, uint8 [rows, bytes of a row]. @param rows default: all */
  raw(stored: StoredWeight, rows?: Rows): Tensor {
    using s = scope();
    return s.keep(inOrder(stored, rows, (some) => this.#rows(stored.entry, 'uint8', some)));
  }

  /**
   * Returns the tensor in element type `dtype` and the stored shape, or transposed, unpacked from blocks where the file has those.
   * @param rows of the result. Default: all
   */
  dense(stored: StoredWeight, dtype: DType, transposed = false, rows?: Rows): Tensor {
    const { modelRows, ...inFile } = stored;
    return modelRows === undefined
      ? this.#dense(stored, dtype, transposed, rows)
      : this.#resized(inFile, dtype, rows ?? { first: 0, count: modelRows });
  }

  /** Returns rows of a matrix, zeros behind those that the file has. */
  #resized(stored: StoredWeight, dtype: DType, { first, count }: Rows): Tensor {
    using s = scope();
    const [inFile, width] = stored.entry.shape as [number, number];
    const present = Math.max(0, Math.min(count, inFile - first));
    const zeros = ops.zeros([count - present, width], { dtype });
    if (present === 0) return s.keep(zeros);
    const read = this.#dense(stored, dtype, false, { first, count: present });
    return s.keep(present === count ? read : ops.cat([read, zeros], 0));
  }

  #dense(stored: StoredWeight, dtype: DType, transposed: boolean, rows: Rows | undefined): Tensor {
    using s = scope();
    const { format, shape } = stored.entry;
    const unpacked = (piece: Tensor) =>
      isBlockFormat(format) ? ops.dequantize(piece, formats[format].nativeId) : piece;
    const from = isBlockFormat(format) ? 'uint8' : format;
    if (transposed) {
      // Its rows are the file's columns.
      const columns = rows ?? { first: 0, count: shape[1]! };
      const read = this.#rows(stored.entry, from, undefined, dtype, (piece) =>
        ops.narrow(unpacked(piece), 1, columns.first, columns.count),
      );
      return s.keep(ops.contiguous(ops.t(read)));
    }
    return s.keep(
      inOrder(stored, rows, (some) => {
        const read = this.#rows(stored.entry, from, some, dtype, unpacked);
        return ops.view(read, some && shape.length > 1 ? [some.count, ...shape.slice(1)] : shape);
      }),
    );
  }

  /** Returns a matrix, or its transpose, packed in blocks of a format: uint8 [rows, bytes of a row]. @param rows of the result. Default: all */
  packed(stored: StoredWeight, format: BlockFormat, transposed = false, rows?: Rows): Tensor {
    using s = scope();
    const { nativeId } = formats[format];
    if (transposed) return s.keep(ops.quantize(this.#dense(stored, 'float32', true, rows), nativeId));
    const { format: from } = stored.entry;
    const numbers = (piece: Tensor) =>
      isBlockFormat(from) ? ops.dequantize(piece, formats[from].nativeId) : ops.toCopy(piece, { dtype: 'float32' });
    return s.keep(
      inOrder(stored, rows, (some) =>
        this.#rows(stored.entry, isBlockFormat(from) ? 'uint8' : from, some, 'uint8', (piece) =>
          ops.quantize(numbers(piece), nativeId),
        ),
      ),
    );
  }

  /** Whether two stored tensors have the same shape and numbers. Both are read piece by piece. */
  areEqual(a: StoredWeight, b: StoredWeight): boolean {
    const { shape } = a.entry;
    if (shape.length !== b.entry.shape.length || shape.some((n, i) => n !== b.entry.shape[i])) return false;
    const rows = rowsOf(shape);
    const atOnce = Math.max(1, Math.floor((comparedElements * rows) / shape.reduce((x, y) => x * y, 1)));
    for (let first = 0; first < rows; first += atOnce) {
      using _ = scope();
      const count = Math.min(atOnce, rows - first);
      if (!ops.equal(this.#numbers(a.entry, first, count), this.#numbers(b.entry, first, count))) return false;
    }
    return true;
  }

  /** Returns some rows as float32. */
  #numbers(entry: WeightEntry, first: number, count: number): Tensor {
    const { format } = entry;
    return isBlockFormat(format)
      ? ops.dequantize(this.#piece(entry, 'uint8', first, count), formats[format].nativeId)
      : ops.toCopy(this.#piece(entry, format, first, count), { dtype: 'float32' });
  }

  /**
   * Reads rows (a vector is one) as element type `stored` and returns what `convert` makes of them, piece by piece, in `dtype`.
   * @param rows undefined: all
   */
  #rows(
    entry: WeightEntry,
    stored: DType,
    rows: Rows = { first: 0, count: rowsOf(entry.shape) },
    dtype = stored,
    convert = (piece: Tensor) => piece,
  ): Tensor {
    const maxRows = Math.max(1, Math.floor(maxBufferBytes / (entry.bytes / rowsOf(entry.shape))));
    let all: Tensor | undefined;
    for (let done = 0; done < rows.count; done += maxRows) {
      using s = scope();
      const count = Math.min(maxRows, rows.count - done);
      const piece = convert(this.#piece(entry, stored, rows.first + done, count));
      all ??= s.keep(Tensor.empty([rows.count, piece.size(1)], dtype));
      ops.copy_(ops.narrow(all, 0, done, count), piece);
    }
    return all!;
  }

  /** Reads some rows [count, width] into the shared buffer: the result changes with the next piece of this element type. */
  #piece(entry: WeightEntry, stored: DType, first: number, count: number): Tensor {
    const rowBytes = entry.bytes / rowsOf(entry.shape);
    const width = rowBytes / dtypes[stored].bytes;
    const { tensor, bytes } = this.#buffer(stored, count * rowBytes);
    this.#source.read(entry.name, bytes.subarray(0, count * rowBytes), first * rowBytes);
    return ops.view(ops.narrow(tensor, 0, 0, count * width), [count, width]);
  }

  /** Returns the buffer for an element type, of `minBytes` or more. */
  #buffer(dtype: DType, minBytes: number): { readonly tensor: Tensor; readonly bytes: Uint8Array } {
    const existing = this.#buffers.get(dtype);
    if (existing && existing.bytes.length >= minBytes) return existing;
    existing?.tensor.dispose();
    const tensor = detachFromScopes(
      Tensor.staging([Math.max(this.#bufferBytes, minBytes) / dtypes[dtype].bytes], dtype),
    );
    const buffer = { tensor, bytes: tensor.memory() };
    this.#buffers.set(dtype, buffer);
    return buffer;
  }

  [Symbol.dispose](): void {
    for (const { tensor } of this.#buffers.values()) tensor.dispose();
    this.#buffers.clear();
  }
}

/** Reads some rows of a weight into memory, as the model holds them. @param rows default: all */
export type ReadWeight = (rows?: Rows) => Tensor;

/** What a model asks a reader for. */
export interface WeightForm {
  readonly shape: readonly number[];
  readonly dtype: DType;
  /** The format in which it is held. */
  readonly format: FormatName;
  /** Whether its rows are the file's columns. */
  readonly transposed: boolean;
}

/** A reader that decides where weights are, by their forms: each kind is one function. */
export abstract class PlacingReader extends WeightReader {
  /** Returns a weight. @param read reads it as `WeightReader` does */
  protected abstract place(stored: StoredWeight, form: WeightForm, read: ReadWeight): Tensor;

  override raw(stored: StoredWeight): Tensor {
    const { shape, bytes, format } = stored.entry;
    const rows = rowsOf(shape);
    const form = { shape: [rows, bytes / rows], dtype: 'uint8', format, transposed: false } as const;
    return this.place(stored, form, (some) => super.raw(stored, some));
  }

  override dense(stored: StoredWeight, dtype: DType, transposed = false): Tensor {
    const shape = shapeOf(stored, transposed);
    return this.place(stored, { shape, dtype, format: dtype, transposed }, (rows) =>
      super.dense(stored, dtype, transposed, rows),
    );
  }

  override packed(stored: StoredWeight, format: BlockFormat, transposed = false): Tensor {
    const shape = blockBytesOf(shapeOf(stored, transposed), format);
    return this.place(stored, { shape, dtype: 'uint8', format, transposed }, (rows) =>
      super.packed(stored, format, transposed, rows),
    );
  }
}

const shapeOf = ({ entry: { shape }, modelRows }: StoredWeight, transposed: boolean) =>
  transposed ? shape.toReversed() : modelRows === undefined ? shape : [modelRows, ...shape.slice(1)];

/** The shape of a matrix in blocks of a format: uint8 [rows, bytes of a row]. */
function blockBytesOf(matrix: readonly number[], format: BlockFormat): readonly number[] {
  const [rows, width] = matrix as [number, number];
  const { blockElements, blockBytes } = formats[format];
  return [rows, (width / blockElements) * blockBytes];
}

/** Reads rows in the order of the checkpoint: of a tensor whose heads GGUF interleaves, whole heads. */
function inOrder(
  { entry, interleavedHeads }: StoredWeight,
  rows: Rows | undefined,
  read: (rows: Rows | undefined) => Tensor,
): Tensor {
  if (!rows || entry.shape.length < 2 || !interleavedHeads)
    return deinterleaved(read(entry.shape.length < 2 ? undefined : rows), interleavedHeads);
  const headRows = entry.shape[0]! / interleavedHeads;
  const firstHead = Math.floor(rows.first / headRows);
  const heads = Math.ceil((rows.first + rows.count) / headRows) - firstHead;
  const whole = deinterleaved(read({ first: firstHead * headRows, count: heads * headRows }), heads);
  return ops.narrow(whole, 0, rows.first - firstHead * headRows, rows.count);
}

/**
 * Restores the order of rows that convert_hf_to_gguf.py changed: within a head, its row 2i was row i, and its row 2i + 1
 * was row i of the second half.
 */
function deinterleaved(tensor: Tensor, heads: number | undefined): Tensor {
  if (!heads) return tensor;
  using s = scope();
  const rows = tensor.shape.length > 1 ? tensor.size(0) : tensor.numel;
  const flat = ops.view(tensor, [heads, rows / heads / 2, 2, tensor.numel / rows]);
  return s.keep(ops.view(ops.contiguous(ops.transpose(flat, 1, 2)), tensor.shape));
}

/**
 * Reads one stored tensor into memory of its own, in its stored shape. It belongs to the caller's scope.
 * @param dtype default: the stored element type, or float32 for a tensor in a block format, which is dequantised
 * @throws GraftError 'usage' for a name that the source does not have, 'input' where the file was changed or cut since it was opened
 */
export function readTensor(source: WeightSource, name: string, dtype?: DType): Tensor {
  using s = scope();
  const entry = source.entries.get(name);
  if (!entry) throw new GraftError('usage', `the tensor ${name} was not found`, { place: source.path });
  const { format, shape, bytes } = entry;
  if (!isBlockFormat(format)) {
    const stored = Tensor.empty(shape, format).fillBytes((into) => source.read(name, into));
    return s.keep(dtype && dtype !== format ? ops.toCopy(stored, { dtype }) : stored);
  }
  const rows = shape.slice(0, -1).reduce((product, size) => product * size, 1);
  const blocks = Tensor.empty([rows, bytes / rows], 'uint8', host);
  source.read(name, blocks.memory());
  const numbers = ops.view(ops.dequantize(blocks, formats[format].nativeId), shape).to(currentDevice());
  return s.keep(dtype && dtype !== numbers.dtype ? ops.toCopy(numbers, { dtype }) : numbers);
}
