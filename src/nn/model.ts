import type { Tensor } from '../tensor/index.ts';
import type { KvCache } from './cache.ts';
import type { Kernels } from './kernels.ts';
import type { Module } from './module.ts';
import type { Sites } from './sites.ts';

/** The tokens of several rows end to end: no padding anywhere (design §4). */
export interface PackedTokens {
  /** int64 [N] */
  readonly ids: Tensor;
  /** int64 [N]; restart in each row. */
  readonly positions: Tensor;
  /** R + 1 offsets. */
  readonly rowStarts: readonly number[];
  /** One more than the largest position. */
  readonly longest: number;
}

/** What a model offers to methods, training and generation: its modules by path, and these ports. */
export interface Model extends Disposable {
  readonly family: string;
  /** As in `config.json`. */
  readonly config: Readonly<Record<string, unknown>>;
  readonly sites: Sites;
  readonly kernels: Kernels;
  /** Holds the checkpoint's names: `root.model.layers[0].self_attn.q_proj`. */
  readonly root: Module;
  readonly vocabSize: number;
  readonly layers: number;
  /** Numbers in the base's weights, tied ones once. */
  readonly parameters: number;
  /** Positions that the model was trained for. */
  readonly contextLength: number;
  /** Final hidden states [N, C]. With a cache (one row only): keys and values are read from and added to it. */
  hidden(tokens: PackedTokens, cache?: KvCache): Tensor;
  /** [N, C] → [N, V] */
  logits(hidden: Tensor): Tensor;
  /** Sum of the cross-entropies of hidden [N, C] against targets int64 [N] (−100: not predicted): a scalar, in nats. */
  lossSum(hidden: Tensor, targets: Tensor): Tensor;
  newCache(capacity: number): KvCache;
}
