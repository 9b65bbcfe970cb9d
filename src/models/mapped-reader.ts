/** Weights that stay in files: the kernel reads them when they are needed, and drops them when memory is short. */
import type { ScratchFile, WeightSource } from '../io/index.ts';
import type { BlockFormat } from '../quant/index.ts';
import { type DType, dtypes, ops, scope, type Tensor } from '../tensor/index.ts';
import { blockBytesOf } from './shapes-reader.ts';
import { isHeldAsStored, staysInMemory } from './weight-memory.ts';
import { type Rows, rowsOf, type StoredWeight, WeightReader } from './weight-reader.ts';

/** Bytes that are converted at once. */
const pieceBytes = 2 ** 23;

/** Returns tensors on the model's own files where these hold what the model holds, else on a file that it writes. */
export class MappedReader extends WeightReader {
  readonly #source: WeightSource;
  readonly #written: ScratchFile;

  constructor(source: WeightSource, written: ScratchFile) {
    super(source);
    this.#source = source;
    this.#written = written;
  }

  override raw(stored: StoredWeight): Tensor {
    const { shape, bytes } = stored.entry;
    const rows = rowsOf(shape);
    return this.#mapped(stored, [rows, bytes / rows], 'uint8', isHeldAsStored(stored, stored.entry.format), (some) =>
      super.raw(stored, some),
    );
  }

  override dense(stored: StoredWeight, dtype: DType, transposed = false): Tensor {
    const { shape } = stored.entry;
    const isStored = !transposed && isHeldAsStored(stored, dtype);
    return this.#mapped(stored, transposed ? shape.toReversed() : shape, dtype, isStored, (rows) =>
      super.dense(stored, dtype, transposed, rows),
    );
  }

  override packed(stored: StoredWeight, format: BlockFormat, transposed = false): Tensor {
    const { shape } = stored.entry;
    return this.#mapped(stored, blockBytesOf(transposed ? shape.toReversed() : shape, format), 'uint8', false, (rows) =>
      super.packed(stored, format, transposed, rows),
    );
  }

  /** @param isStored whether the file holds the tensor in this form. @param read reads some rows of the tensor into memory; default: all */
  #mapped(
    { entry }: StoredWeight,
    shape: readonly number[],
    dtype: DType,
    isStored: boolean,
    read: (rows?: Rows) => Tensor,
  ): Tensor {
    const bytes = shape.reduce((a, b) => a * b, dtypes[dtype].bytes);
    if (staysInMemory(bytes)) return read();
    const own = isStored ? this.#source.map?.(entry.name, shape, dtype) : undefined;
    if (own) return own;
    const tensor = this.#written.zeros(shape, dtype);
    const rows = rowsOf(shape);
    const atOnce = Math.max(1, Math.floor((pieceBytes * rows) / bytes));
    for (let first = 0; first < rows; first += atOnce) {
      using _ = scope();
      const count = Math.min(atOnce, rows - first);
      if (rows === 1) ops.copy_(tensor, read());
      else ops.copy_(ops.narrow(tensor, 0, first, count), read({ first, count }));
    }
    this.#written.written(tensor);
    return tensor;
  }
}
