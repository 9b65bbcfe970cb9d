/** Weights that stay in files: the kernel reads them when they are needed, and drops them when memory is short. */
import type { ScratchFile, WeightSource } from '../io/index.ts';
import { dtypes, ops, scope, type Tensor } from '../tensor/index.ts';
import { isHeldAsStored, staysInMemory } from './weight-memory.ts';
import { PlacingReader, type ReadWeight, rowsOf, type StoredWeight, type WeightForm } from './weight-reader.ts';

/** Bytes that are converted at once. */
const pieceBytes = 2 ** 23;

/** Returns tensors on the model's own files where these hold what the model holds, else on a file that it writes. */
export class MappedReader extends PlacingReader {
  readonly #source: WeightSource;
  readonly #written: ScratchFile;

  constructor(source: WeightSource, written: ScratchFile) {
    super(source);
    this.#source = source;
    this.#written = written;
  }

  protected place(stored: StoredWeight, { shape, dtype, format, transposed }: WeightForm, read: ReadWeight): Tensor {
    const bytes = shape.reduce((a, b) => a * b, dtypes[dtype].bytes);
    if (staysInMemory(bytes)) return read();
    const isStored = !transposed && stored.modelRows === undefined && isHeldAsStored(stored, format);
    const own = isStored ? this.#source.map?.(stored.entry.name, shape, dtype) : undefined;
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
