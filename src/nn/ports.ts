/**
 * What methods add to a model's computation, besides replacing its modules (design §4): virtual tokens in front of every row,
 * keys and values in front of a layer's own, changes to the output of a block's sublayers, to the input of the first block and
 * to the output of the last one. A model without ports computes as if this file did not exist, at no cost.
 * Letters: N packed tokens, R rows, T virtual tokens, C width, K kv heads, D head size.
 */
import { GraftError } from '../base/index.ts';
import { ops, Tensor } from '../tensor/index.ts';
import { BatchKeyValues, type KeyValueSource, PooledKeyValues, type Prefix } from './key-values.ts';
import type { CachedRows, KeyValues } from './kv-pool.ts';
import type { PackedTokens } from './packed.ts';
import { type Prompt, withPrompts } from './prompts.ts';
import { type Run, runsOf } from './runs.ts';

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

/** What one method adds to the computation: any of these fields. */
export interface Port {
  /** When false, the port has no effect. */
  readonly enabled: boolean;
  /** Vectors in front of every row's embeddings. */
  readonly prompt?: Prompt;
  /** Keys, after rotation, and values in front of every row's own. */
  readonly prefix?: Prefix;
  /** The same of the adapter with this number, for rows that use it: one object for an adapter, however often it is asked. */
  promptOf?(adapter: number): Prompt | undefined;
  prefixOf?(adapter: number): Prefix | undefined;
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
  /** For each row, the position of its first token here: what a prefix or a pool has before it. */
  readonly firstPositions: readonly number[];
  /** For each row, whether a pool holds keys of its earlier tokens. */
  readonly isContinued: readonly boolean[];
  /** Token types with 0 for virtual tokens; undefined where the batch has none. */
  readonly types: Tensor | undefined;
  /** Removes the virtual tokens: [N + R·T, C] → [N, C]. */
  strip(x: Tensor): Tensor;
}

const lengthOf = (virtual: readonly { readonly length: number }[]) =>
  virtual.reduce((sum, { length }) => sum + length, 0);

const none: readonly Port[] = [];

/** All ports of a model, in the order in which they were added. */
export class Ports {
  readonly #ports = new Set<Port>();
  #runs: readonly Run[] = [];
  #adapters: readonly number[] = [];
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

  get #enabled(): readonly Port[] {
    return this.#ports.size === 0 ? none : [...this.#ports].filter((port) => port.enabled);
  }

  /** Which adapter each part of the tokens uses that layers compute now; empty where no banks take part. */
  get runs(): readonly Run[] {
    return this.#runs;
  }

  /** Sets `runs` for rows of a batch that is not begun by a pass, as the head's; without arguments there are none. */
  selectRuns(rowStarts: readonly number[] = [0], adapters?: readonly number[]): void {
    if (adapters && adapters.length !== rowStarts.length - 1)
      throw new GraftError('usage', `${rowStarts.length - 1} rows have ${adapters.length} numbers of adapters`, {
        place: 'adapters',
        hint: 'Give one for each row: 0 for the base alone',
      });
    this.#runs = runsOf(rowStarts, adapters);
    this.#adapters = adapters ?? [];
  }

  /**
   * Returns the runs of an input with so many vectors: one for each token, or one for each row, as heads and poolers read.
   * @throws GraftError 'state' for any other number
   */
  runsFor(vectors: number): readonly Run[] {
    const runs = this.#runs;
    if (runs.length === 0 || runs.at(-1)!.end === vectors) return runs;
    const rows = this.#adapters.length;
    if (vectors === rows) return runsOf([...Array(rows + 1).keys()], this.#adapters);
    throw new GraftError(
      'state',
      `a layer reads ${vectors} vectors, and the batch has ${runs.at(-1)!.end} tokens in ${rows} rows`,
    );
  }

  /** Returns what `compute` returns, which reads rows of one adapter only. @param rowStarts their offsets, from 0 */
  within<T>(adapter: number, rowStarts: readonly number[], compute: () => T): T {
    const [runs, adapters] = [this.#runs, this.#adapters];
    this.selectRuns(
      rowStarts,
      rowStarts.slice(1).map(() => adapter),
    );
    try {
      return compute();
    } finally {
      this.#runs = runs;
      this.#adapters = adapters;
    }
  }

  #promptsOf(adapter?: number): Prompt[] {
    return this.#enabled.flatMap((port) => {
      const prompt = (adapter === undefined ? undefined : port.promptOf?.(adapter)) ?? port.prompt;
      return prompt ? [prompt] : [];
    });
  }

  #prefixesOf(adapter?: number): Prefix[] {
    return this.#enabled.flatMap((port) => {
      const prefix = (adapter === undefined ? undefined : port.prefixOf?.(adapter)) ?? port.prefix;
      return prefix ? [prefix] : [];
    });
  }

  /** Virtual tokens of a row that are embeddings. */
  get promptLength(): number {
    return lengthOf(this.#promptsOf());
  }

  /** Virtual tokens of a row. */
  get virtualLength(): number {
    return this.virtualLengthOf();
  }

  /** Virtual tokens of a row that uses the adapter with this number. */
  virtualLengthOf(adapter?: number): number {
    return lengthOf(this.#promptsOf(adapter)) + lengthOf(this.#prefixesOf(adapter));
  }

  /** Whether rows that use the adapter with this number need the number of their task. */
  readsTasks(adapter?: number): boolean {
    return this.#promptsOf(adapter).some(({ readsTasks }) => readsTasks);
  }

  /**
   * Begins a pass: puts the prompts in front of every row and returns the input of the first block. Positions count all virtual
   * tokens: first the prefix, then the prompt, then the row's own tokens, as in PEFT. From here on, `runs` are those of the pass.
   * @param x the tokens' own embeddings [N, C], before any position is added
   * @param readsFirstToken the head reads the first token of a row, which is then the first virtual one: `strip` returns its
   * hidden state in the place of the row's own first token, as PEFT's BERT classifiers do
   */
  addVirtualTokens(x: Tensor, tokens: PackedTokens, cache?: CachedRows, readsFirstToken = false): BlockInput {
    const { adapters } = tokens;
    const rows = tokens.rowStarts.slice(1);
    const isContinued = rows.map((_, r) => (cache?.filled[r] ?? 0) > 0);
    // What a pool holds of a row that is continued begins with its virtual tokens.
    const prompts = rows.map((_, r) => (isContinued[r] ? [] : this.#promptsOf(adapters?.[r])));
    const firstPositions = rows.map((_, r) =>
      isContinued[r] ? cache!.filled[r]! : lengthOf(this.#prefixesOf(adapters?.[r])),
    );
    const hasPrompt = prompts.some((own) => own.length > 0);
    const { types, rowStarts } = tokens;
    const input = hasPrompt
      ? withPrompts(x, tokens, prompts, readsFirstToken)
      : { x, types, rowStarts, strip: (hidden: Tensor) => hidden };
    const ends = input.rowStarts.slice(1);
    const [first = 0] = firstPositions;
    const isShifted = !hasPrompt && firstPositions.every((other) => other === first);
    const positions = isShifted ? shifted(tokens.positions, first) : positionsFrom(firstPositions, input.rowStarts);
    this.selectRuns(input.rowStarts, adapters);
    return {
      ...input,
      positions,
      longest: firstPositions.reduce((most, first, r) => Math.max(most, first + ends[r]! - input.rowStarts[r]!), 0),
      firstPositions,
      isContinued,
      strip: (hidden) => {
        this.selectRuns(rowStarts, adapters);
        return input.strip(hidden);
      },
    };
  }

  afterEmbedding(x: Tensor): Tensor {
    return this.#enabled.reduce((y, port) => port.afterEmbedding?.(y) ?? y, x);
  }

  afterFinalNorm(x: Tensor): Tensor {
    return this.#enabled.reduceRight((y, port) => port.afterFinalNorm?.(y) ?? y, x);
  }

  afterAttention(output: SublayerOutput): Tensor {
    if (this.#ports.size === 0) return output.delta;
    return this.#enabled.reduce((delta, port) => port.afterAttention?.({ ...output, delta }) ?? delta, output.delta);
  }

  afterMlp(output: SublayerOutput): Tensor {
    if (this.#ports.size === 0) return output.delta;
    return this.#enabled.reduce((delta, port) => port.afterMlp?.({ ...output, delta }) ?? delta, output.delta);
  }

  /**
   * Returns where the layers of one pass get their keys and values.
   * @param rowStarts virtual tokens included
   * @param adapters the number of each row's adapter
   */
  keyValues(rowStarts: readonly number[], adapters?: readonly number[], cache?: CachedRows): KeyValueSource {
    const prefixes = rowStarts.slice(1).map((_, r) => this.#prefixesOf(adapters?.[r]));
    if (cache) return new PooledKeyValues(rowStarts, prefixes, cache);
    return new BatchKeyValues(rowStarts, prefixes, this.#recorded);
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
}

const shifted = (positions: Tensor, by: number) => (by === 0 ? positions : ops.addScalar(positions, by));

/** Returns positions int64 of rows that begin at `firstPositions`. */
function positionsFrom(firstPositions: readonly number[], rowStarts: readonly number[]): Tensor {
  const positions = new BigInt64Array(rowStarts.at(-1)!);
  firstPositions.forEach((first, r) => {
    for (let n = rowStarts[r]!; n < rowStarts[r + 1]!; n++) positions[n] = BigInt(first + n - rowStarts[r]!);
  });
  return Tensor.from(positions);
}
