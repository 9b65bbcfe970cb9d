/** Where the layers of one pass get their keys and values. Letters: M, N tokens, K kv heads, D head size. */
import { detachFromScopes, ops, Tensor } from '../tensor/index.ts';
import type { AttentionRows, PooledLayer } from './kernels.ts';
import type { CachedRows, KeyValues } from './kv-pool.ts';

/** Keys, after rotation, and values in front of a row's own. */
export interface Prefix {
  readonly length: number;
  /** Called once for each forward pass; returns a function from a layer's number to its keys and values [T, K, D]. */
  open(): (layer: number) => KeyValues;
}

/** Where the layers of one pass get their keys and values: the batch, prefixes in front of each row, or a pool. */
export interface KeyValueSource {
  readonly rows: AttentionRows;
  /** The tensors that a layer's keys and values are made of, besides the batch's own. */
  prefixTensors(layer: number): readonly Tensor[];
  /** k, v [N, K, D] of the batch → the keys and values that its queries attend to. */
  forLayer(layer: number, k: Tensor, v: Tensor): KeyValues;
  /** Where the layer's keys and values go directly; undefined where they need `forLayer`. */
  pooled(layer: number): PooledLayer | undefined;
  /** The same for one layer, with these tensors in the place of its `prefixTensors`. */
  withPrefixTensors(tensors: readonly Tensor[]): KeyValueSource;
}

/** The prefixes of a pass, each opened once, one after the other. */
class OpenPrefixes {
  readonly #opened: ((layer: number) => KeyValues)[] = [];
  /** The first of each prefix's tokens among those of all. */
  readonly #firsts = new Map<Prefix, number>();
  /** Tokens of all prefixes. */
  readonly length: number;

  constructor(prefixes: readonly (readonly Prefix[])[]) {
    let length = 0;
    for (const prefix of new Set(prefixes.flat())) {
      this.#firsts.set(prefix, length);
      this.#opened.push(prefix.open());
      length += prefix.length;
    }
    this.length = length;
  }

  get count(): number {
    return this.#opened.length;
  }

  /** Returns the tokens of one row's prefixes among those of all. */
  tokensOf(prefixes: readonly Prefix[]): number[] {
    return prefixes.flatMap((prefix) => Array.from({ length: prefix.length }, (_, t) => this.#firsts.get(prefix)! + t));
  }

  /** The keys of each prefix, then the values of each. */
  tensors(layer: number): Tensor[] {
    const parts = this.#opened.map((at) => at(layer));
    return [...parts.map(({ k }) => k), ...parts.map(({ v }) => v)];
  }
}

const indexTensor = (index: readonly number[]) => Tensor.from(BigInt64Array.from(index, BigInt));

/** Keys and values of the batch, with prefixes in front of each row. */
export class BatchKeyValues implements KeyValueSource {
  readonly rows: AttentionRows;
  readonly #prefixes: OpenPrefixes;
  readonly #recorded: KeyValues[] | undefined;
  /** For each key, its index into the prefixes' keys followed by the batch's own; undefined: in this order already. */
  readonly #index: Tensor | undefined;

  /**
   * @param prefixes for each row
   * @param recorded where to keep a copy of each layer's own keys and values
   */
  constructor(
    rowStarts: readonly number[],
    prefixes: readonly (readonly Prefix[])[],
    recorded: KeyValues[] | undefined,
  ) {
    this.#recorded = recorded;
    this.#prefixes = new OpenPrefixes(prefixes);
    const starts = [0];
    prefixes.forEach((own, r) => {
      const length = own.reduce((sum, prefix) => sum + prefix.length, 0);
      starts.push(starts[r]! + length + rowStarts[r + 1]! - rowStarts[r]!);
    });
    this.rows = { qStarts: rowStarts, kStarts: starts.slice(0, -1), kEnds: starts.slice(1) };
    if (this.#prefixes.length === 0 || rowStarts.length === 2) return;
    const index: number[] = [];
    prefixes.forEach((own, r) => {
      index.push(...this.#prefixes.tokensOf(own));
      for (let n = rowStarts[r]!; n < rowStarts[r + 1]!; n++) index.push(this.#prefixes.length + n);
    });
    this.#index = indexTensor(index);
  }

  prefixTensors(layer: number): readonly Tensor[] {
    return [...this.#prefixes.tensors(layer), ...(this.#index ? [this.#index] : [])];
  }

  pooled(): undefined {
    return undefined;
  }

  withPrefixTensors(tensors: readonly Tensor[]): KeyValueSource {
    return {
      rows: this.rows,
      prefixTensors: () => tensors,
      pooled: () => undefined,
      forLayer: (layer, k, v) => this.forLayer(layer, k, v, tensors),
      withPrefixTensors: (others) => this.withPrefixTensors(others),
    };
  }

  forLayer(layer: number, k: Tensor, v: Tensor, tensors?: readonly Tensor[]): KeyValues {
    if (this.#recorded) {
      this.#recorded[layer] = { k: detachFromScopes(ops.clone(k)), v: detachFromScopes(ops.clone(v)) };
    }
    const { count } = this.#prefixes;
    if (count === 0) return { k, v };
    const prefixes = tensors ?? this.prefixTensors(layer);
    const index = prefixes[2 * count];
    const joined = (prefix: readonly Tensor[], batch: Tensor) => {
      const all = ops.cat([...prefix, batch]);
      return index ? ops.indexSelect(all, 0, index) : all;
    };
    return { k: joined(prefixes.slice(0, count), k), v: joined(prefixes.slice(count, 2 * count), v) };
  }
}

/** Keys and values in a pool, to which the batch's own are added, and the prefix of a row that begins. */
export class PooledKeyValues implements KeyValueSource {
  readonly rows: PooledLayer['rows'];
  readonly #cache: CachedRows;
  readonly #prefixes: OpenPrefixes;
  /** The slot of each token that the pass writes: of the batch, then of the prefixes. */
  readonly #slots: Tensor;
  /** For each prefix token that is written, its index among those of all prefixes; undefined: each once, in order. */
  readonly #prefixIndex: Tensor | undefined;

  /** @param prefixes for each row */
  constructor(rowStarts: readonly number[], prefixes: readonly (readonly Prefix[])[], cache: CachedRows) {
    this.#cache = cache;
    const { pool, blocks, filled } = cache;
    const beginning = prefixes.map((own, r) => (filled[r] === 0 ? own : []));
    this.#prefixes = new OpenPrefixes(beginning);
    const [slots, prefixSlots, prefixTokens]: [number[], number[], number[]] = [[], [], []];
    const [kStarts, kEnds]: [number[], number[]] = [[], []];
    const table: number[] = [];
    beginning.forEach((own, r) => {
      const slotAt = (s: number) => blocks[r]![Math.floor(s / pool.blockSize)]! * pool.blockSize + (s % pool.blockSize);
      const tokens = this.#prefixes.tokensOf(own);
      const first = filled[r]! + tokens.length;
      const end = first + rowStarts[r + 1]! - rowStarts[r]!;
      prefixTokens.push(...tokens);
      for (let t = 0; t < tokens.length; t++) prefixSlots.push(slotAt(t));
      for (let s = first; s < end; s++) slots.push(slotAt(s));
      const used = Math.ceil(end / pool.blockSize);
      kStarts.push(table.length * pool.blockSize);
      kEnds.push(table.length * pool.blockSize + end);
      for (let b = 0; b < used; b++) table.push(blocks[r]![b]!);
    });
    const inOrder = prefixTokens.length === this.#prefixes.length && prefixTokens.every((token, t) => token === t);
    if (!inOrder) this.#prefixIndex = indexTensor(prefixTokens);
    // In one copy to the pool's device.
    const numbers = indexTensor([...slots, ...prefixSlots, ...table]);
    const written = slots.length + prefixSlots.length;
    this.#slots = ops.narrow(numbers, 0, 0, written);
    const pages = { table: ops.narrow(numbers, 0, written, table.length), size: pool.blockSize };
    this.rows = { qStarts: rowStarts, kStarts, kEnds, pages };
  }

  prefixTensors(): readonly Tensor[] {
    return [];
  }

  pooled(layer: number): PooledLayer | undefined {
    if (this.#prefixes.count > 0) return undefined;
    return { ...this.#cache.pool.layer(layer), slots: this.#slots, rows: this.rows };
  }

  withPrefixTensors(): KeyValueSource {
    return this;
  }

  forLayer(layer: number, k: Tensor, v: Tensor): KeyValues {
    const { count } = this.#prefixes;
    if (count === 0) return this.#cache.pool.write(layer, this.#slots, k, v);
    const tensors = this.#prefixes.tensors(layer);
    const written = (prefix: readonly Tensor[]) => {
      const all = prefix.length === 1 ? prefix[0]! : ops.cat([...prefix]);
      return this.#prefixIndex ? ops.indexSelect(all, 0, this.#prefixIndex) : all;
    };
    const joined = (batch: Tensor, prefix: readonly Tensor[]) => ops.cat([batch, written(prefix)]);
    return this.#cache.pool.write(
      layer,
      this.#slots,
      joined(k, tensors.slice(0, count)),
      joined(v, tensors.slice(count)),
    );
  }
}
