import { detachFromScopes, ops, type Tensor } from '../tensor/index.ts';

/** The keys and values of one row's tokens so far, virtual ones included: [capacity, K, D] for each layer. */
export class KvCache implements Disposable {
  readonly capacity: number;
  /** Slots in use, those of virtual tokens included. */
  length = 0;
  /** Tokens of the row, without virtual ones. */
  tokens = 0;
  readonly #layers: { k: Tensor; v: Tensor }[];

  /** @param capacity most tokens that the cache can hold, virtual ones included */
  constructor(layers: number, capacity: number, kvHeads: number, headDim: number) {
    this.capacity = capacity;
    this.#layers = Array.from({ length: layers }, () => ({
      k: detachFromScopes(ops.zeros([capacity, kvHeads, headDim])),
      v: detachFromScopes(ops.zeros([capacity, kvHeads, headDim])),
    }));
  }

  /**
   * Writes k and v [N, K, D] of one layer after the slots in use, and returns the layer's whole cache. `advance` then
   * counts them as in use.
   */
  write(layer: number, k: Tensor, v: Tensor): { k: Tensor; v: Tensor } {
    const cached = this.#layers[layer]!;
    const n = k.size(0);
    ops.copy_(ops.narrow(cached.k, 0, this.length, n), k);
    ops.copy_(ops.narrow(cached.v, 0, this.length, n), v);
    return cached;
  }

  advance(slots: number, tokens: number): void {
    this.length += slots;
    this.tokens += tokens;
  }

  [Symbol.dispose](): void {
    for (const { k, v } of this.#layers) {
      k.dispose();
      v.dispose();
    }
  }
}
