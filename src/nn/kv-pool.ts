import { detachFromScopes, inType, ops, type Tensor } from '../tensor/index.ts';

/** Keys (after rotation) and values of one layer, [M, K, D] each. */
export interface KeyValues {
  readonly k: Tensor;
  readonly v: Tensor;
}

/** Slots of a block: as many keys as the attention kernel takes between two steps of its softmax. */
const BLOCK_SIZE = 32;

/**
 * Memory for keys and values, in blocks of `blockSize` slots that rows are given one by one (arXiv 2309.06180): [blocks · blockSize, K, D]
 * for each layer. Who has which block is not known here.
 */
export class KvPool implements Disposable {
  readonly blocks: number;
  readonly blockSize = BLOCK_SIZE;
  readonly #layers: readonly KeyValues[];

  /** @param shape of the model: layers, heads K of keys and values, their size D */
  constructor(shape: KvShape, blocks: number) {
    this.blocks = blocks;
    const slots = () => detachFromScopes(ops.empty([blocks * BLOCK_SIZE, shape.kvHeads, shape.headDim]));
    this.#layers = Array.from({ length: shape.layers }, () => ({ k: slots(), v: slots() }));
  }

  /** Returns how many blocks hold `slots` slots. */
  static blocksFor(slots: number): number {
    return Math.ceil(slots / BLOCK_SIZE);
  }

  /** Returns the bytes of one block, over all layers. */
  static blockBytes({ layers, kvHeads, headDim }: KvShape): number {
    return 2 * 4 * layers * BLOCK_SIZE * kvHeads * headDim;
  }

  /** All keys and values of one layer. */
  layer(layer: number): KeyValues {
    return this.#layers[layer]!;
  }

  /** Writes k and v [M, K, D] of one layer to slots int64 [M], and returns all keys and values of the layer. */
  write(layer: number, slots: Tensor, k: Tensor, v: Tensor): KeyValues {
    const all = this.layer(layer);
    ops.indexCopy_(all.k, 0, slots, inType(k, all.k.dtype));
    ops.indexCopy_(all.v, 0, slots, inType(v, all.v.dtype));
    return all;
  }

  [Symbol.dispose](): void {
    for (const { k, v } of this.#layers) {
      k.dispose();
      v.dispose();
    }
  }
}

/** What decides the size of a block. */
export interface KvShape {
  readonly layers: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

/** Where the rows of a pass keep their keys and values. */
export interface CachedRows {
  readonly pool: KvPool;
  /** For each row, its blocks in the order of its slots, with room for what the pass adds. */
  readonly blocks: readonly (readonly number[])[];
  /** For each row, how many slots are filled already, those of virtual tokens included; 0: the row begins. */
  readonly filled: readonly number[];
}
