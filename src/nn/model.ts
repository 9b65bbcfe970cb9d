import type { Tensor } from '../tensor/index.ts';
import type { Kernels } from './kernels.ts';
import type { KvCache } from './kv-cache.ts';
import type { Linear } from './layers.ts';
import type { Module } from './module.ts';
import type { ImageShape, PackedTokens } from './packed.ts';
import type { Ports } from './ports.ts';
import type { Sites } from './sites.ts';
import type { TaskHead } from './tasks.ts';

/** What a model offers to methods, training and generation: its modules by path, and these ports. */
export interface Model extends Disposable {
  readonly family: string;
  readonly task: TaskHead;
  /** As in `config.json`. */
  readonly config: Readonly<Record<string, unknown>>;
  /** The class of transformers that a saved model is for. */
  readonly architecture: string;
  readonly sites: Sites;
  readonly kernels: Kernels;
  /** What methods put in. */
  readonly ports: Ports;
  /** Holds the checkpoint's names: `root.model.layers[0].self_attn.q_proj`. */
  readonly root: Module;
  readonly vocabSize: number;
  readonly layers: number;
  /** C: of hidden states and embeddings. */
  readonly width: number;
  /** K and D of the keys and values of a layer. */
  readonly kvHeads: number;
  readonly headDim: number;
  /** Numbers in the base's weights, tied ones once. */
  readonly parameters: number;
  /** Positions that the model was trained for; of sentences fewer, where sentence-transformers' settings say so. */
  contextLength: number;
  /** Families that see: `PackedTokens.pixels` of this shape. */
  readonly image?: ImageShape;
  /** The checkpoint's key of a tensor, where transformers names modules otherwise than their files (ViT). */
  fileKey?(key: string): string;
  /** Final hidden states [N, C]. With a cache (one row only): keys and values are read from and added to it. */
  hidden(tokens: PackedTokens, cache?: KvCache): Tensor;
  /**
   * What the task's head makes of hidden states [N, C]: [N, V] for causal-lm, [N, L] for token classification, [N, 2] for
   * question answering (start, end), [R, L] for classification of rows and images, [R, C] for embedding.
   * @param ids int64 [N]; decoders that classify rows read the last token that is no pad, where rows may end in pads
   */
  logits(hidden: Tensor, rowStarts: readonly number[], ids?: Tensor): Tensor;
  /** causal-lm only. Sum of the cross-entropies of hidden [N, C] against targets int64 [N] (−100: not predicted): a scalar, in nats. */
  lossSum(hidden: Tensor, targets: Tensor): Tensor;
  newCache(capacity: number): KvCache;
  /** The weight of the layer at `path` read again from the checkpoint, dense [out, in] float32, whatever form the layer holds it in. */
  stored?: (path: string, layer: Linear) => Tensor;
}

/** What the model's head says about `tokens`: shapes as `Model.logits` has them. */
export const outputOf = (model: Model, tokens: PackedTokens): Tensor =>
  model.logits(model.hidden(tokens), tokens.rowStarts, tokens.ids);
