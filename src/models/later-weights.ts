/** Weights that a model is built without: they are read afterwards, some rows at a time, by who needs them. */
import type { WeightSource } from '../io/index.ts';
import { absent, detachFromScopes, give, noGrad, type Tensor } from '../tensor/index.ts';
import {
  PlacingReader,
  type ReadWeight,
  type Rows,
  rowsOf,
  type StoredWeight,
  type WeightForm,
  type WeightReader,
} from './weight-reader.ts';

/** The weights of a model that were not read while it was loaded, and its files, which stay open until this is disposed. */
export class LaterWeights implements Disposable {
  readonly #reads = new Map<Tensor, ReadWeight>();
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
class ReaderForLater extends PlacingReader {
  readonly #reads: Map<Tensor, ReadWeight>;

  constructor(source: WeightSource, reads: Map<Tensor, ReadWeight>) {
    super(source);
    this.#reads = reads;
  }

  protected place(_: StoredWeight, { shape, dtype }: WeightForm, read: ReadWeight): Tensor {
    const weight = detachFromScopes(absent(shape, dtype));
    this.#reads.set(weight, read);
    return weight;
  }
}
