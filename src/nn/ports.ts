/**
 * What methods add to a model's computation, besides replacing its modules (design §4): virtual tokens in front of every row,
 * keys and values in front of a layer's own, changes to the output of a block's sublayers, to the input of the first block and
 * to the output of the last one. A model without ports computes as if this file did not exist, at no cost.
 * Letters: N packed tokens, R rows, T virtual tokens, C width, K kv heads, D head size.
 */
import { detachFromScopes, noGrad, ops, scope, Tensor } from '../tensor/index.ts';
import type { AttentionRows } from './kernels.ts';
import { KvCache } from './kv-cache.ts';
import type { PackedTokens } from './packed.ts';

/** The output of one sublayer of a block: attention or MLP. */
export interface SublayerOutput {
  /** Number of the block, from 0. */
  readonly layer: number;
  /** What the sublayer adds to the residual stream [N, C]. */
  readonly delta: Tensor;
  /** The residual stream before the addition [N, C]. */
  readonly residual: Tensor;
  /** The norm of the sum, in families that apply it after the sublayer (BERT); undefined where norms come before. */
  readonly norm: ((sum: Tensor) => Tensor) | undefined;
  /** R + 1 offsets of the rows, virtual tokens included. */
  readonly rowStarts: readonly number[];
}

/** Keys (after rotation) and values of one layer, [M, K, D] each. */
export interface KeyValues {
  readonly k: Tensor;
  readonly v: Tensor;
}

/** What one method adds to the computation: any of these fields. */
export interface Port {
  /** When false, the port has no effect. */
  readonly enabled: boolean;
  /** Vectors in front of every row's embeddings. */
  readonly prompt?: {
    readonly length: number;
    /** Returns [T, C], the same for all rows, or [R·T, C]. */
    vectors(tokens: PackedTokens): Tensor;
  };
  /** Keys, after rotation, and values in front of every row's own. */
  readonly prefix?: {
    readonly length: number;
    /** Called once for each forward pass; returns a function from a layer's number to its keys and values [T, K, D]. */
    open(): (layer: number) => KeyValues;
  };
  /** Returns what is added to the residual stream instead of `delta` [N, C]. */
  afterAttention?(output: SublayerOutput): Tensor;
  afterMlp?(output: SublayerOutput): Tensor;
  /** Changes the embeddings [N, C] before the first block. */
  afterEmbedding?(x: Tensor): Tensor;
  /** Changes the hidden states [N, C] after the last norm; the port that was added last runs first. */
  afterFinalNorm?(x: Tensor): Tensor;
}

/** The rows as the blocks see them, virtual tokens included. */
export interface BlockInput {
  /** Embeddings [N + R·T, C]. */
  readonly x: Tensor;
  readonly positions: Tensor;
  readonly rowStarts: readonly number[];
  /** One more than the largest position. */
  readonly longest: number;
  /** Token types with 0 for virtual tokens; undefined where the batch has none. */
  readonly types: Tensor | undefined;
  /** Removes the virtual tokens: [N + R·T, C] → [N, C]. */
  strip(x: Tensor): Tensor;
}

/** All ports of a model, in the order in which they were added. */
export class Ports {
  readonly #ports = new Set<Port>();
  /** Where the layers of a pass store their keys and values while `recordKeyValues` runs. */
  #recorded: KeyValues[] | undefined;

  /** Adds a port after the others and returns the function that removes it. */
  add(port: Port): () => void {
    this.#ports.add(port);
    return () => this.#ports.delete(port);
  }

  /** Whether any port is enabled. */
  get anyEnabled(): boolean {
    return this.#enabled.length > 0;
  }

  get #enabled(): Port[] {
    return [...this.#ports].filter((port) => port.enabled);
  }

  /** Virtual tokens of a row that are embeddings. */
  get promptLength(): number {
    return this.#enabled.reduce((sum, { prompt }) => sum + (prompt?.length ?? 0), 0);
  }

  /** Virtual tokens of a row that are keys and values only. */
  get prefixLength(): number {
    return this.#enabled.reduce((sum, { prefix }) => sum + (prefix?.length ?? 0), 0);
  }

  get virtualLength(): number {
    return this.promptLength + this.prefixLength;
  }

  /**
   * Puts the prompts in front of every row and returns the input of the first block. Positions count all virtual tokens:
   * first the prefix, then the prompt, then the row's own tokens, as in PEFT.
   * @param x the tokens' own embeddings [N, C], before any position is added
   * @param readsFirstToken the head reads the first token of a row, which is then the first virtual one: `strip` returns its
   * hidden state in the place of the row's own first token, as PEFT's BERT classifiers do
   */
  addVirtualTokens(x: Tensor, tokens: PackedTokens, cache?: KvCache, readsFirstToken = false): BlockInput {
    const { promptLength, prefixLength } = this;
    const shift = promptLength + prefixLength;
    const positions = shift === 0 ? tokens.positions : ops.addScalar(tokens.positions, shift);
    const { types } = tokens;
    const input = { x, positions, types, rowStarts: tokens.rowStarts, longest: tokens.longest + shift };
    const prompts = this.#enabled.flatMap(({ prompt }) => (prompt ? [prompt] : []));
    // The cache of a row that is continued holds its prompt.
    if (promptLength === 0 || (cache && cache.tokens > 0)) return { ...input, strip: (hidden) => hidden };
    const vectors = prompts.map((prompt) => prompt.vectors(tokens));
    /** For each row of the result, the row of `x` and the prompts' vectors, one after the other, that it is. */
    const sources: bigint[] = [];
    /** For each token of `x`, its row in the result. */
    const targets: bigint[] = [];
    const rowStarts = [0];
    for (let r = 0; r + 1 < tokens.rowStarts.length; r++) {
      let offset = x.size(0);
      vectors.forEach((block, i) => {
        const { length } = prompts[i]!;
        const first = block.size(0) === length ? offset : offset + r * length;
        for (let t = 0; t < length; t++) sources.push(BigInt(first + t));
        offset += block.size(0);
      });
      for (let n = tokens.rowStarts[r]!; n < tokens.rowStarts[r + 1]!; n++) {
        const isRead = readsFirstToken && n === tokens.rowStarts[r];
        targets.push(BigInt(isRead ? rowStarts[r]! : sources.length));
        sources.push(BigInt(n));
      }
      rowStarts.push(sources.length);
    }
    const sourceIndex = Tensor.from(BigInt64Array.from(sources));
    const targetIndex = Tensor.from(BigInt64Array.from(targets));
    const newPositions = new BigInt64Array(sources.length);
    // As of every row: positions restart in each.
    const firstPosition =
      tokens.longest - Math.max(...tokens.rowStarts.slice(1).map((end, r) => end - tokens.rowStarts[r]!));
    for (let r = 0; r + 1 < rowStarts.length; r++) {
      const first = prefixLength + firstPosition;
      for (let n = rowStarts[r]!; n < rowStarts[r + 1]!; n++) newPositions[n] = BigInt(first + n - rowStarts[r]!);
    }
    const zeros = vectors.map((block) => ops.zeros([block.size(0)], { dtype: 'int64' }));
    return {
      x: ops.indexSelect(ops.cat([x, ...vectors]), 0, sourceIndex),
      positions: Tensor.from(newPositions),
      types: types && ops.indexSelect(ops.cat([types, ...zeros]), 0, sourceIndex),
      rowStarts,
      longest: input.longest,
      strip: (hidden) => ops.indexSelect(hidden, 0, targetIndex),
    };
  }

  afterEmbedding(x: Tensor): Tensor {
    return this.#enabled.reduce((y, port) => port.afterEmbedding?.(y) ?? y, x);
  }

  afterFinalNorm(x: Tensor): Tensor {
    return this.#enabled.reduceRight((y, port) => port.afterFinalNorm?.(y) ?? y, x);
  }

  afterAttention(output: SublayerOutput): Tensor {
    return this.#enabled.reduce((delta, port) => port.afterAttention?.({ ...output, delta }) ?? delta, output.delta);
  }

  afterMlp(output: SublayerOutput): Tensor {
    return this.#enabled.reduce((delta, port) => port.afterMlp?.({ ...output, delta }) ?? delta, output.delta);
  }

  /** Returns where the layers of one pass get their keys and values. */
  keyValues(rowStarts: readonly number[], cache?: KvCache): KeyValueSource {
    return new PassKeyValues(this.#openPrefixes(cache), rowStarts, cache, this.#recorded);
  }

  /** The prefixes of one pass; none with a cache, which holds them. */
  #openPrefixes(cache?: KvCache): OpenPrefix[] {
    if (cache) return [];
    return this.#enabled.flatMap(({ prefix }) => (prefix ? [{ length: prefix.length, at: prefix.open() }] : []));
  }

  /** Runs `pass`, a forward pass, without any port, and returns the keys and values that each layer computed in it. */
  recordKeyValues(pass: () => void): readonly KeyValues[] {
    const ports = [...this.#ports];
    const recorded: KeyValues[] = [];
    this.#ports.clear();
    this.#recorded = recorded;
    try {
      pass();
    } finally {
      this.#recorded = undefined;
      for (const port of ports) this.#ports.add(port);
    }
    return recorded;
  }

  /** Returns a cache for one row that holds the prefix and has room for `capacity` tokens besides the virtual ones. */
  newCache(layers: number, capacity: number, kvHeads: number, headDim: number): KvCache {
    const cache = new KvCache(layers, capacity + this.virtualLength, kvHeads, headDim);
    noGrad(() => {
      using _ = scope();
      for (const prefix of this.#openPrefixes()) {
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
  at(layer: number): KeyValues;
}

/** Where the layers of one pass get their keys and values: the batch, prefixes in front of each row, or a cache. */
export interface KeyValueSource {
  readonly rows: AttentionRows;
  /** The tensors that a layer's keys and values are made of, besides the batch's own. */
  prefixTensors(layer: number): readonly Tensor[];
  /** k, v [N, K, D] of the batch → the keys and values that its queries attend to. */
  forLayer(layer: number, k: Tensor, v: Tensor): KeyValues;
  /** The same for one layer, with these tensors in the place of its `prefixTensors`. */
  withPrefixTensors(tensors: readonly Tensor[]): KeyValueSource;
}

class PassKeyValues implements KeyValueSource {
  readonly rows: AttentionRows;
  readonly #prefixes: readonly OpenPrefix[];
  readonly #cache: KvCache | undefined;
  readonly #recorded: KeyValues[] | undefined;
  /** For each slot, its index into the prefixes' keys followed by the batch's own; undefined: in this order already. */
  readonly #index: Tensor | undefined;

  constructor(
    prefixes: readonly OpenPrefix[],
    rowStarts: readonly number[],
    cache: KvCache | undefined,
    recorded: KeyValues[] | undefined,
  ) {
    this.#prefixes = prefixes;
    this.#cache = cache;
    this.#recorded = recorded;
    const tokens = rowStarts.at(-1)!;
    if (cache) {
      this.rows = { qStarts: rowStarts, kStarts: [0], kEnds: [cache.length + tokens] };
      return;
    }
    const prefixLength = prefixes.reduce((sum, { length }) => sum + length, 0);
    const starts = rowStarts.map((start, r) => start + r * prefixLength);
    this.rows = { qStarts: rowStarts, kStarts: starts.slice(0, -1), kEnds: starts.slice(1) };
    if (prefixLength === 0 || rowStarts.length === 2) return;
    const index: bigint[] = [];
    for (let r = 0; r + 1 < rowStarts.length; r++) {
      for (let t = 0; t < prefixLength; t++) index.push(BigInt(t));
      for (let n = rowStarts[r]!; n < rowStarts[r + 1]!; n++) index.push(BigInt(prefixLength + n));
    }
    this.#index = Tensor.from(BigInt64Array.from(index));
  }

  prefixTensors(layer: number): readonly Tensor[] {
    const prefixes = this.#prefixes.map(({ at }) => at(layer));
    return [...prefixes.map(({ k }) => k), ...prefixes.map(({ v }) => v), ...(this.#index ? [this.#index] : [])];
  }

  withPrefixTensors(tensors: readonly Tensor[]): KeyValueSource {
    return {
      rows: this.rows,
      prefixTensors: () => tensors,
      forLayer: (layer, k, v) => this.forLayer(layer, k, v, tensors),
      withPrefixTensors: (others) => this.withPrefixTensors(others),
    };
  }

  forLayer(layer: number, k: Tensor, v: Tensor, tensors?: readonly Tensor[]): KeyValues {
    if (this.#recorded) {
      this.#recorded[layer] = { k: detachFromScopes(ops.clone(k)), v: detachFromScopes(ops.clone(v)) };
    }
    if (this.#cache) return this.#cache.write(layer, k, v);
    if (this.#prefixes.length === 0) return { k, v };
    const prefixes = tensors ?? this.prefixTensors(layer);
    const count = this.#prefixes.length;
    const index = prefixes[2 * count];
    const joined = (prefix: readonly Tensor[], batch: Tensor) => {
      const all = ops.cat([...prefix, batch]);
      return index ? ops.indexSelect(all, 0, index) : all;
    };
    return { k: joined(prefixes.slice(0, count), k), v: joined(prefixes.slice(count, 2 * count), v) };
  }
}
