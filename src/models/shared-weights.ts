/** Weights in memory that several models compute with, also in several threads. None of them writes into a weight. */
import type { WeightSource } from '../io/index.ts';
import { detachFromScopes, ops, type Tensor } from '../tensor/index.ts';
import {
  PlacingReader,
  type ReadWeight,
  type StoredWeight,
  type WeightForm,
  type WeightReader,
} from './weight-reader.ts';

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

class SharingReader extends PlacingReader {
  readonly #held: Map<string, Tensor>;

  constructor(source: WeightSource, held: Map<string, Tensor>) {
    super(source);
    this.#held = held;
  }

  protected place(
    { entry, modelRows }: StoredWeight,
    { format, dtype, transposed }: WeightForm,
    read: ReadWeight,
  ): Tensor {
    const key = [
      entry.name,
      format,
      dtype,
      ...(transposed ? ['transposed'] : []),
      ...(modelRows === undefined ? [] : [`${modelRows} rows`]),
    ].join(', ');
    const held = this.#held.get(key);
    if (held) return ops.detach(held);
    const tensor = read();
    this.#held.set(key, detachFromScopes(ops.detach(tensor)));
    return tensor;
  }
}
