/** Weights in memory that several models compute with, also in several threads. None of them writes into a weight. */
import type { WeightSource } from '../io/index.ts';
import type { BlockFormat } from '../quant/index.ts';
import { type DType, detachFromScopes, ops, type Tensor } from '../tensor/index.ts';
import { type Rows, type StoredWeight, WeightReader } from './weight-reader.ts';

/**
 * The weights of a checkpoint in memory, for several models: give it to `loadModel` of each. It has handles of its own, so dispose it too.
 * None of the models may write into a weight.
 */
export class SharedWeights implements Disposable {
  readonly #held: Map<string, Tensor>;

  /** Begins with nothing, or with what another one has. @param held `entries` of that, with handles that become its own */
  constructor(held: Iterable<readonly [string, Tensor]> = []) {
    this.#held = new Map(held);
  }

  /** What is in memory: by name and form. */
  get entries(): ReadonlyMap<string, Tensor> {
    return this.#held;
  }

  /** @internal Returns a reader of a checkpoint that reads from the file only what is not in memory. */
  readerOf(source: WeightSource): WeightReader {
    return new SharingReader(source, this.#held);
  }

  /** Lets go of all: the memory of each is freed with the last model that has it. */
  [Symbol.dispose](): void {
    for (const tensor of this.#held.values()) tensor.dispose();
    this.#held.clear();
  }
}

class SharingReader extends WeightReader {
  readonly #held: Map<string, Tensor>;

  constructor(source: WeightSource, held: Map<string, Tensor>) {
    super(source);
    this.#held = held;
  }

  override raw(stored: StoredWeight, rows?: Rows): Tensor {
    return rows ? super.raw(stored, rows) : this.#shared(stored, 'as stored', () => super.raw(stored));
  }

  override dense(stored: StoredWeight, dtype: DType, transposed = false, rows?: Rows): Tensor {
    const read = () => super.dense(stored, dtype, transposed, rows);
    return rows ? read() : this.#shared(stored, transposed ? `${dtype}, transposed` : dtype, read);
  }

  override packed(stored: StoredWeight, format: BlockFormat, transposed = false, rows?: Rows): Tensor {
    const read = () => super.packed(stored, format, transposed, rows);
    return rows ? read() : this.#shared(stored, transposed ? `${format}, transposed` : format, read);
  }

  #shared({ entry }: StoredWeight, form: string, read: () => Tensor): Tensor {
    const key = `${entry.name}, ${form}`;
    const held = this.#held.get(key);
    if (held) return ops.detach(held);
    const tensor = read();
    this.#held.set(key, detachFromScopes(ops.detach(tensor)));
    return tensor;
  }
}
