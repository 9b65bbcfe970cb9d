import type { WeightEntry, WeightSource } from '../io/index.ts';
import { formats, isBlockFormat } from '../quant/index.ts';
import { type DType, detachFromScopes, dtypes, ops, scope, Tensor } from '../tensor/index.ts';

/** A stored tensor under the key that the family asks for, with its rows put in order. */
export interface StoredWeight {
  readonly entry: WeightEntry;
  readonly interleavedHeads: number | undefined;
}

/** Bytes of a file that are in memory at one time; a row that is longer is read as a whole. */
const pieceBytes = 2 ** 23;

/**
 * Makes tensors of stored ones, some rows at a time, so that loading takes little beside what it makes. The memory that rows
 * are read into is one for all: what JavaScript has seen of a tensor is not freed before the event loop turns.
 */
export class StoredReader implements Disposable {
  readonly #source: WeightSource;
  readonly #pieces = new Map<DType, { readonly tensor: Tensor; readonly bytes: Uint8Array }>();

  constructor(source: WeightSource) {
    this.#source = source;
  }

  /** The stored bytes: uint8 [rows, bytes of a row]. */
  raw({ entry, interleavedHeads }: StoredWeight): Tensor {
    using s = scope();
    return s.keep(ordered(this.#rows(entry, 'uint8'), interleavedHeads));
  }

  /** Numbers of `dtype` in the stored shape. */
  dense({ entry, interleavedHeads }: StoredWeight, dtype: DType): Tensor {
    using s = scope();
    const { format, shape } = entry;
    const numbers = isBlockFormat(format)
      ? this.#rows(entry, 'uint8', dtype, (piece) => ops.dequantize(piece, formats[format].nativeId))
      : this.#rows(entry, format, dtype);
    return s.keep(ordered(ops.view(numbers, shape), interleavedHeads));
  }

  /** A matrix packed anew in blocks of `format`: uint8 [rows, bytes of a row]. */
  packed({ entry, interleavedHeads }: StoredWeight, format: number): Tensor {
    using s = scope();
    const { format: from } = entry;
    const numbers = (piece: Tensor) =>
      isBlockFormat(from) ? ops.dequantize(piece, formats[from].nativeId) : ops.toCopy(piece, { dtype: 'float32' });
    const packed = this.#rows(entry, isBlockFormat(from) ? 'uint8' : from, 'uint8', (piece) =>
      ops.quantize(numbers(piece), format),
    );
    return s.keep(ordered(packed, interleavedHeads));
  }

  /** All rows (a vector is one), read as `stored`, as `convert` makes them of each piece, in `dtype`. */
  #rows(entry: WeightEntry, stored: DType, dtype = stored, convert = (piece: Tensor) => piece): Tensor {
    const rows = entry.shape.length > 1 ? entry.shape[0]! : 1;
    const rowBytes = entry.bytes / rows;
    const width = rowBytes / dtypes[stored].bytes;
    const { tensor, bytes } = this.#piece(stored, rowBytes);
    const atOnce = Math.floor(bytes.length / rowBytes);
    let all: Tensor | undefined;
    for (let at = 0; at < rows; at += atOnce) {
      using s = scope();
      const count = Math.min(atOnce, rows - at);
      this.#source.read(entry.name, bytes.subarray(0, count * rowBytes), at * rowBytes);
      const piece = convert(ops.view(ops.narrow(tensor, 0, 0, count * width), [count, width]));
      all ??= s.keep(Tensor.empty([rows, piece.size(1)], dtype));
      ops.copy_(ops.narrow(all, 0, at, count), piece);
    }
    return all!;
  }

  #piece(dtype: DType, least: number): { readonly tensor: Tensor; readonly bytes: Uint8Array } {
    const known = this.#pieces.get(dtype);
    if (known && known.bytes.length >= least) return known;
    known?.tensor.dispose();
    const tensor = detachFromScopes(Tensor.empty([Math.max(pieceBytes, least) / dtypes[dtype].bytes], dtype));
    const piece = { tensor, bytes: tensor.memory() };
    this.#pieces.set(dtype, piece);
    return piece;
  }

  [Symbol.dispose](): void {
    for (const { tensor } of this.#pieces.values()) tensor.dispose();
    this.#pieces.clear();
  }
}

/** Undoes convert_hf_to_gguf.py: within a head, row 2i comes from the first half and row 2i + 1 from the second. */
function ordered(tensor: Tensor, heads: number | undefined): Tensor {
  if (!heads) return tensor;
  using s = scope();
  const rows = tensor.shape.length > 1 ? tensor.size(0) : tensor.numel;
  const flat = ops.view(tensor, [heads, rows / heads / 2, 2, tensor.numel / rows]);
  return s.keep(ops.view(ops.contiguous(ops.transpose(flat, 1, 2)), tensor.shape));
}
