/**
 * Who has which block of a `KvPool` (arXiv 2309.06180), and which full blocks can be used again by rows that begin alike: no tensor is
 * seen here. A block is free; held by one or more sequences; or cached, when it is published and no sequence holds it.
 */

/** A published block: its content follows from its key, which names the blocks before it, and the ids in it. */
interface Published {
  readonly key: string;
  /** Never used again for other content, unlike the block's number. */
  readonly uid: number;
}

/** Blocks of a prefix that others left, now held. */
export interface Match {
  readonly blocks: number[];
  /** The key that the next block's begins with. */
  readonly parent: string;
}

export class BlockManager {
  readonly total: number;
  /** Slots of a block. */
  readonly size: number;
  /** Free blocks, the next one at the end: low numbers first, which keeps a lone row's blocks in order. */
  readonly #free: number[];
  readonly #holders: Int32Array;
  readonly #published = new Map<number, Published>();
  readonly #byKey = new Map<string, number>();
  /** Published blocks that nobody holds, the one unused for longest first. */
  readonly #cached = new Set<number>();
  #nextUid = 0;

  constructor(total: number, size: number) {
    this.total = total;
    this.size = size;
    this.#free = Array.from({ length: total }, (_, i) => total - 1 - i);
    this.#holders = new Int32Array(total);
  }

  /** Blocks that can be given out now. */
  get available(): number {
    return this.#free.length + this.#cached.size;
  }

  get cached(): number {
    return this.#cached.size;
  }

  /** Blocks that sequences hold. */
  get held(): number {
    return this.total - this.available;
  }

  /**
   * Finds the longest run of published blocks that a row begins with, and holds them. The ids are part of the keys, so a hit has them all.
   * @param root what decides the content besides ids: base, adapter, task
   * @param virtual slots in front of the ids; a block may hold none of these, some, or nothing else
   * @param limit ids that may be found at most: one has to be computed
   */
  match(root: string, ids: readonly number[], virtual: number, limit = ids.length - 1): Match {
    const [blocks, parents]: [number[], string[]] = [[], [root]];
    for (let b = 0; (b + 1) * this.size - virtual <= limit; b++) {
      const block = this.#byKey.get(this.#keyOf(parents[b]!, ids, virtual, b));
      if (block === undefined) break;
      blocks.push(block);
      parents.push(String(this.#published.get(block)!.uid));
    }
    // Virtual slots are computed with the first ids.
    if (blocks.length * this.size <= virtual) return { blocks: [], parent: root };
    for (const block of blocks) this.#hold(block);
    return { blocks, parent: parents[blocks.length]! };
  }

  /** Returns `count` blocks for one sequence, or undefined where there are not as many. Published ones lose their content. */
  take(count: number): number[] | undefined {
    if (count > this.available) return undefined;
    return Array.from({ length: count }, () => {
      const block = this.#free.pop() ?? this.#evict();
      this.#holders[block] = 1;
      return block;
    });
  }

  /**
   * Publishes a full block whose keys and values have been computed.
   * @param parent of `match`, or what this function returned for the block before
   * @param index of the block in its row
   * @returns the parent of the next block
   */
  publish(block: number, parent: string, ids: readonly number[], virtual: number, index: number): string {
    const own = this.#published.get(block);
    if (own) return String(own.uid);
    const key = this.#keyOf(parent, ids, virtual, index);
    const other = this.#byKey.get(key);
    // Another row computed the same: its block is found from now on, and this one is freed with its row.
    if (other !== undefined) return String(this.#published.get(other)!.uid);
    const uid = this.#nextUid++;
    this.#published.set(block, { key, uid });
    this.#byKey.set(key, block);
    return String(uid);
  }

  /** Gives back a sequence's blocks, the last first: so the ends of rows are evicted before their beginnings. */
  release(blocks: readonly number[]): void {
    for (const block of blocks.toReversed()) {
      if (this.#holders[block]! < 1) throw new Error(`block ${block} is given back, and nobody holds it`);
      this.#holders[block]!--;
      if (this.#holders[block] !== 0) continue;
      if (this.#published.has(block)) this.#cached.add(block);
      else this.#free.push(block);
    }
  }

  #hold(block: number): void {
    this.#cached.delete(block);
    this.#holders[block]!++;
  }

  #evict(): number {
    const [block] = this.#cached as unknown as [number];
    this.#cached.delete(block);
    this.#byKey.delete(this.#published.get(block)!.key);
    this.#published.delete(block);
    return block;
  }

  #keyOf(parent: string, ids: readonly number[], virtual: number, index: number): string {
    const first = Math.max(0, index * this.size - virtual);
    const end = Math.max(0, (index + 1) * this.size - virtual);
    return `${parent}|${ids.slice(first, end).join()}`;
  }
}
