/** The rank of a pair that has no merge. */
export const NO_MERGE = 2 ** 31 - 1;

/** The rank of a merge by the ids of its two tokens: a hash table, which is several times as fast as a Map with a number for each pair. */
export class PairRanks {
  readonly #mask: number;
  /** By slot: the two ids and the rank + 1; 0 for an empty slot. */
  readonly #slots: Int32Array;

  /** @param count of the pairs that will be set */
  constructor(count: number) {
    const size = 2 ** Math.ceil(Math.log2(Math.max(8, count * 2)));
    this.#mask = size - 1;
    this.#slots = new Int32Array(3 * size);
  }

  /** The slot that holds the pair, or the empty one where it belongs. */
  #slotOf(left: number, right: number): number {
    const slots = this.#slots;
    let hash = Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca6b);
    hash ^= hash >>> 15;
    for (let i = hash & this.#mask; ; i = (i + 1) & this.#mask) {
      const at = 3 * i;
      if (slots[at + 2] === 0 || (slots[at] === left && slots[at + 1] === right)) return at;
    }
  }

  /** A pair that is set again has its last rank. */
  set(left: number, right: number, rank: number): void {
    const at = this.#slotOf(left, right);
    this.#slots[at] = left;
    this.#slots[at + 1] = right;
    this.#slots[at + 2] = rank + 1;
  }

  get(left: number, right: number): number {
    const rank = this.#slots[this.#slotOf(left, right) + 2]!;
    return rank === 0 ? NO_MERGE : rank - 1;
  }
}
