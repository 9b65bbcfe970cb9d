/**
 * What methods put into a model's computation, beside replacing its modules (design §4): virtual tokens in front of every
 * row, keys and values in front of a layer's own, a word on what each half of a block adds to the residual stream, and on
 * what goes into the first block and comes out of the last. A plain model has none of it and pays nothing.
 * Letters: N packed tokens, R rows, T virtual tokens, C width, K kv heads, D head size.
 */
import { detachFromScopes, noGrad, ops, scope, Tensor } from '../tensor/index.ts';
import type { AttentionRows } from './kernels.ts';
import { KvCache } from './kv-cache.ts';
import type { PackedTokens } from './packed.ts';

/** What one half of a block (attention or MLP) gives. */
export interface SublayerOutput {
  readonly layer: number;
  /** What the half adds to the residual stream [N, C]. */
  readonly delta: Tensor;
  /** The stream that it is added to [N, C]. */
  readonly residual: Tensor;
  /** The norm of the sum, in families that norm after it (BERT); undefined where norms come before. */
  readonly norm: ((sum: Tensor) => Tensor) | undefined;
  /** Of the pass, virtual tokens included. */
  readonly rowStarts: readonly number[];
}

/** [M, K, D] each, keys after rotation. */
export interface KeysAndValues {
  readonly k: Tensor;
  readonly v: Tensor;
}

/** One method's part in the computation; any of the fields. */
export interface Port {
  /** Off, the part is as if it were not there. */
  readonly enabled: boolean;
  /** Vectors in front of every row's embeddings. */
  readonly prompt?: {
    readonly length: number;
    /** [T, C], the same for all rows, or [R·T, C] */
    vectors(tokens: PackedTokens): Tensor;
  };
  /** Keys, as they are after rotation, and values in front of every row's own. */
  readonly prefix?: {
    readonly length: number;
    /** Called once a pass: what one layer after the other asks for its k, v [T, K, D]. */
    open(): (layer: number) => KeysAndValues;
  };
  /** What the half is to add instead of `delta`. */
  afterAttention?(half: SublayerOutput): Tensor;
  afterMlp?(half: SublayerOutput): Tensor;
  /** On the embeddings [N, C] before the first block, and, last part first, on the hidden states after the last norm. */
  afterEmbedding?(x: Tensor): Tensor;
  afterFinalNorm?(x: Tensor): Tensor;
}

/** Rows as the blocks see them, virtual tokens included. */
export interface BlockInput {
  readonly x: Tensor;
  readonly positions: Tensor;
  readonly rowStarts: readonly number[];
  readonly longest: number;
  /** Token types with 0 for virtual tokens, where the batch has some. */
  readonly types: Tensor | undefined;
  /** Takes the virtual tokens off again: [N + R·T, C] → [N, C]. */
  strip(x: Tensor): Tensor;
}

export class Ports {
  readonly #parts = new Set<Port>();
  /** Where the layers of a pass leave their keys and values while someone listens. */
  #heard: KeysAndValues[] | undefined;

  /** Puts a part in, behind those that are there; call what it returns to take it out. */
  add(part: Port): () => void {
    this.#parts.add(part);
    return () => this.#parts.delete(part);
  }

  /** Whether any part is at work. */
  get anyEnabled(): boolean {
    return this.#active.length > 0;
  }

  get #active(): Port[] {
    return [...this.#parts].filter((part) => part.enabled);
  }

  /** Virtual tokens that are rows of embeddings. */
  get promptLength(): number {
    return this.#active.reduce((sum, { prompt }) => sum + (prompt?.length ?? 0), 0);
  }

  /** Virtual tokens that are keys and values only. */
  get prefixLength(): number {
    return this.#active.reduce((sum, { prefix }) => sum + (prefix?.length ?? 0), 0);
  }

  get virtualLength(): number {
    return this.promptLength + this.prefixLength;
  }

  /**
   * What goes into the first block. Positions count all virtual tokens: first the prefix, then the prompt, then the row's
   * own tokens, as in PEFT.
   * @param x the tokens' own embeddings [N, C], before any position is added
   * @param pooled the head reads the first token of a row, which is then the first virtual one: `strip` puts what became of
   * it in the place of the row's own first token, as PEFT's BERT classifiers have it
   */
  enter(x: Tensor, tokens: PackedTokens, cache?: KvCache, pooled = false): BlockInput {
    const [prompt, prefix] = [this.promptLength, this.prefixLength];
    const shift = prompt + prefix;
    const positions = shift === 0 ? tokens.positions : ops.addScalar(tokens.positions, shift);
    const { types } = tokens;
    const input = { x, positions, types, rowStarts: tokens.rowStarts, longest: tokens.longest + shift };
    // A row that goes on has its prompt in the cache.
    if (prompt === 0 || (cache && cache.tokens > 0)) return { ...input, strip: (y) => y };
    const vectors = this.#active.flatMap((part) => (part.prompt ? [part.prompt] : []));
    const order: bigint[] = [];
    const real: bigint[] = [];
    const rowStarts = [0];
    const given = vectors.map((part) => part.vectors(tokens));
    for (let r = 0; r + 1 < tokens.rowStarts.length; r++) {
      let at = x.size(0);
      given.forEach((block, i) => {
        const { length } = vectors[i]!;
        const first = block.size(0) === length ? at : at + r * length;
        for (let t = 0; t < length; t++) order.push(BigInt(first + t));
        at += block.size(0);
      });
      for (let n = tokens.rowStarts[r]!; n < tokens.rowStarts[r + 1]!; n++) {
        const first = pooled && n === tokens.rowStarts[r];
        real.push(BigInt(first ? rowStarts[r]! : order.length));
        order.push(BigInt(n));
      }
      rowStarts.push(order.length);
    }
    const index = Tensor.from(BigInt64Array.from(order));
    const own = Tensor.from(BigInt64Array.from(real));
    const places = new BigInt64Array(order.length);
    const starts = tokens.positions.data();
    for (let r = 0; r + 1 < rowStarts.length; r++) {
      const first = Number(starts[tokens.rowStarts[r]!]);
      for (let n = rowStarts[r]!; n < rowStarts[r + 1]!; n++) places[n] = BigInt(prefix + first + n - rowStarts[r]!);
    }
    const zeros = given.map((block) => ops.zeros([block.size(0)], { dtype: 'int64' }));
    return {
      x: ops.indexSelect(ops.cat([x, ...given]), 0, index),
      positions: Tensor.from(places),
      types: types && ops.indexSelect(ops.cat([types, ...zeros]), 0, index),
      rowStarts,
      longest: input.longest,
      strip: (y) => ops.indexSelect(y, 0, own),
    };
  }

  afterEmbedding(x: Tensor): Tensor {
    return this.#active.reduce((y, part) => part.afterEmbedding?.(y) ?? y, x);
  }

  afterFinalNorm(x: Tensor): Tensor {
    return this.#active.reduceRight((y, part) => part.afterFinalNorm?.(y) ?? y, x);
  }

  afterAttention(half: SublayerOutput): Tensor {
    return this.#active.reduce((delta, part) => part.afterAttention?.({ ...half, delta }) ?? delta, half.delta);
  }

  afterMlp(half: SublayerOutput): Tensor {
    return this.#active.reduce((delta, part) => part.afterMlp?.({ ...half, delta }) ?? delta, half.delta);
  }

  /** Where the layers of one pass find their keys and values. */
  keys(rowStarts: readonly number[], cache?: KvCache): LayerKeys {
    return new PassKeys(this.#prefixes(cache), rowStarts, cache, this.#heard);
  }

  /** None where a cache holds them. */
  #prefixes(cache?: KvCache): OpenPrefix[] {
    if (cache) return [];
    return this.#active.flatMap(({ prefix }) => (prefix ? [{ length: prefix.length, at: prefix.open() }] : []));
  }

  /** The keys and values that each layer makes in `pass`, a forward pass that sees nothing of what was put in. */
  listen(pass: () => void): readonly KeysAndValues[] {
    const parts = [...this.#parts];
    const heard: KeysAndValues[] = [];
    this.#parts.clear();
    this.#heard = heard;
    try {
      pass();
    } finally {
      this.#heard = undefined;
      for (const part of parts) this.#parts.add(part);
    }
    return heard;
  }

  /** A cache for one row that has room for `capacity` tokens beside the virtual ones, and holds the prefix. */
  newCache(layers: number, capacity: number, kvHeads: number, headDim: number): KvCache {
    const cache = new KvCache(layers, capacity + this.virtualLength, kvHeads, headDim);
    noGrad(() => {
      using _ = scope();
      for (const prefix of this.#prefixes()) {
        for (let layer = 0; layer < layers; layer++) {
          const { k, v } = prefix.at(layer);
          cache.write(layer, k, v);
        }
        cache.advance(prefix.length, 0);
      }
    });
    return cache;
  }
}

interface OpenPrefix {
  readonly length: number;
  at(layer: number): KeysAndValues;
}

/** The keys and values of one pass: of the batch, of prefixes in front of each row, or of a cache. */
export interface LayerKeys {
  readonly rows: AttentionRows;
  /** The tensors that a layer's keys and values are made of, beside the batch's own. */
  others(layer: number): readonly Tensor[];
  /** k, v [N, K, D] of the batch → what its queries see. */
  of(layer: number, k: Tensor, v: Tensor): KeysAndValues;
  /** The same for one layer, with these in the place of its `others`. */
  with(others: readonly Tensor[]): LayerKeys;
}

class PassKeys implements LayerKeys {
  readonly rows: AttentionRows;
  readonly #prefixes: readonly OpenPrefix[];
  readonly #cache: KvCache | undefined;
  readonly #heard: KeysAndValues[] | undefined;
  /** Which of the prefixes' and the batch's own keys, in this order, stand where; undefined: all as they are. */
  readonly #index: Tensor | undefined;

  constructor(
    prefixes: readonly OpenPrefix[],
    rowStarts: readonly number[],
    cache: KvCache | undefined,
    heard: KeysAndValues[] | undefined,
  ) {
    this.#prefixes = prefixes;
    this.#cache = cache;
    this.#heard = heard;
    const tokens = rowStarts.at(-1)!;
    if (cache) {
      this.rows = { qStarts: rowStarts, kStarts: [0], kEnds: [cache.length + tokens] };
      return;
    }
    const before = prefixes.reduce((sum, { length }) => sum + length, 0);
    const starts = rowStarts.map((start, r) => start + r * before);
    this.rows = { qStarts: rowStarts, kStarts: starts.slice(0, -1), kEnds: starts.slice(1) };
    if (before === 0 || rowStarts.length === 2) return;
    const order: bigint[] = [];
    for (let r = 0; r + 1 < rowStarts.length; r++) {
      for (let t = 0; t < before; t++) order.push(BigInt(t));
      for (let n = rowStarts[r]!; n < rowStarts[r + 1]!; n++) order.push(BigInt(before + n));
    }
    this.#index = Tensor.from(BigInt64Array.from(order));
  }

  others(layer: number): readonly Tensor[] {
    const parts = this.#prefixes.map(({ at }) => at(layer));
    return [...parts.map(({ k }) => k), ...parts.map(({ v }) => v), ...(this.#index ? [this.#index] : [])];
  }

  with(others: readonly Tensor[]): LayerKeys {
    const of = (layer: number, k: Tensor, v: Tensor) => this.of(layer, k, v, others);
    return { rows: this.rows, others: () => others, of, with: (again) => this.with(again) };
  }

  of(layer: number, k: Tensor, v: Tensor, others?: readonly Tensor[]): KeysAndValues {
    if (this.#heard) this.#heard[layer] = { k: detachFromScopes(ops.clone(k)), v: detachFromScopes(ops.clone(v)) };
    if (this.#cache) return this.#cache.write(layer, k, v);
    if (this.#prefixes.length === 0) return { k, v };
    const given = others ?? this.others(layer);
    const count = this.#prefixes.length;
    const index = given[2 * count];
    const joined = (own: Tensor, before: readonly Tensor[]) => {
      const all = ops.cat([...before, own]);
      return index ? ops.indexSelect(all, 0, index) : all;
    };
    return { k: joined(k, given.slice(0, count)), v: joined(v, given.slice(count, 2 * count)) };
  }
}
