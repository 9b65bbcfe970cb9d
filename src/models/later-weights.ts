/** Weights that a model is built without: they are read afterwards, some rows at a time, by who needs them. */
import type { WeightSource } from '../io/index.ts';
import type { BlockFormat } from '../quant/index.ts';
import { absent, type DType, detachFromScopes, give, noGrad, type Tensor } from '../tensor/index.ts';
import { blockBytesOf } from './shapes-reader.ts';
import { type Rows, rowsOf, type StoredWeight, WeightReader } from './weight-reader.ts';

/** Reads rows of a tensor as the model holds them. */
type Read = (rows?: Rows) => Tensor;

/** The weights of a model that were not read while it was loaded, and its files, which stay open until this is disposed. */
export class LaterWeights implements Disposable {
  readonly #reads = new Map<Tensor, Read>();
  readonly #open = new DisposableStack();

  /** Returns a reader for `LoadedWeights` that reads nothing. It disposes of the source with the weights. */
  readerOf(source: WeightSource): WeightReader {
    return this.#open.use(new ReaderForLater(this.#open.use(source), this.#reads));
  }

  /** The weights, absent until something gives them memory. */
  get tensors(): ReadonlySet<Tensor> {
    return new Set(this.#reads.keys());
  }

  /** Returns some rows of a weight: the numbers from its file, as the model holds them. */
  rows(weight: Tensor, rows: Rows): Tensor {
    return this.#reads.get(weight)!(rowsOf(weight.shape) > 1 ? rows : undefined);
  }

  /** Reads weights whole. */
  fill(weights: Iterable<Tensor>): void {
    noGrad(() => {
      for (const weight of weights) give(weight, this.#reads.get(weight)!());
    });
  }

  [Symbol.dispose](): void {
    this.#open.dispose();
    this.#reads.clear();
  }
}

/** Returns absent tensors, and keeps how each is read. */
class ReaderForLater extends WeightReader {
  readonly #reads: Map<Tensor, Read>;

  constructor(source: WeightSource, reads: Map<Tensor, Read>) {
    super(source);
    this.#reads = reads;
  }

  override raw(stored: StoredWeight): Tensor {
    const { shape, bytes } = stored.entry;
    const rows = rowsOf(shape);
    return this.#later([rows, bytes / rows], 'uint8', (some) => super.raw(stored, some));
  }

  override dense(stored: StoredWeight, dtype: DType, transposed = false): Tensor {
    const { shape } = stored.entry;
    return this.#later(transposed ? shape.toReversed() : shape, dtype, (rows) =>
      super.dense(stored, dtype, transposed, rows),
    );
  }

  override packed(stored: StoredWeight, format: BlockFormat, transposed = false): Tensor {
    const { shape } = stored.entry;
    return this.#later(blockBytesOf(transposed ? shape.toReversed() : shape, format), 'uint8', (rows) =>
      super.packed(stored, format, transposed, rows),
    );
  }

  #later(shape: readonly number[], dtype: DType, read: Read): Tensor {
    const weight = detachFromScopes(absent(shape, dtype));
    this.#reads.set(weight, read);
    return weight;
  }
}
