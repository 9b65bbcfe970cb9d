import { detachFromScopes, ops, type Tensor } from '../tensor/index.ts';

/** Keys and values of the tokens that generation has seen, virtual ones included, for one row: per layer [capacity, K, D]. */
export class KvCache implements Disposable {
  readonly capacity: number;
  /** Slots in use; virtual tokens count. */
  length = 0;
  /** Tokens of the row's own. */
  tokens = 0;
  readonly #layers: { k: Tensor; v: Tensor }[];

  /** @param capacity tokens that the cache has room for */
  constructor(layers: number, capacity: number, kvHeads: number, headDim: number) {
    this.capacity = capacity;
    this.#layers = Array.from({ length: layers }, () => ({
      k: detachFromScopes(ops.zeros([capacity, kvHeads, headDim])),
      v: detachFromScopes(ops.zeros([capacity, kvHeads, headDim])),
    }));
  }

  /** Writes k and v [N, K, D] of one layer behind what is there and returns the whole layer's. `advance` moves on. */
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
