import type { Tensor } from '../tensor/index.ts';
import type { Kernels } from './kernels.ts';
import type { CachedRows } from './kv-pool.ts';
import type { Linear } from './layers.ts';
import type { Module } from './module.ts';
import type { ImageShape, PackedTokens } from './packed.ts';
import type { Ports } from './ports.ts';
import type { Sites } from './sites.ts';
import type { TaskHead } from './tasks.ts';

/** A loaded model with the head of one task. */
export interface Model extends Disposable {
  /** The name of the family: `model_type` of its `config.json`. */
  readonly family: string;
  /** The task of the head, with its labels. */
  readonly task: TaskHead;
  /** The fields of `config.json`. */
  readonly config: Readonly<Record<string, unknown>>;
  /** The class of transformers that loads the saved model: `architectures` of its `config.json`. */
  readonly architecture: string;
  /** Where methods find the layers that they change. */
  readonly sites: Sites;
  /** The kernels of the forward and backward passes. */
  readonly kernels: Kernels;
  /** What methods add to the forward pass. */
  readonly ports: Ports;
  /** The module tree; its fields are named as in transformers' class: `root.model.layers[0].self_attn.q_proj`. */
  readonly root: Module;
  /** Size V of the vocabulary. */
  readonly vocabSize: number;
  /** How many blocks the model has. */
  readonly layers: number;
  /** Width C of hidden states and embeddings. */
  readonly width: number;
  /** Heads K of a layer's keys and values. */
  readonly kvHeads: number;
  /** Size D of an attention head. */
  readonly headDim: number;
  /** How many parameters the base has, tied ones once. */
  readonly parameters: number;
  /**
   * Most tokens of a row: the positions that the model was trained for, or fewer where sentence-transformers' settings say
   * so.
   */
  contextLength: number;
  /** The shape of `PackedTokens.pixels`, for vision models. */
  readonly image?: ImageShape;
  /**
   * Returns the checkpoint's key of a tensor, in families whose modules transformers names differently from its files
   * (ViT).
   */
  fileKey?(key: string): string;
  /**
   * Returns the final hidden states [N, C]. With a cache, the keys and values of each row's earlier tokens are read from it, and those
   * of these tokens, and of virtual ones where a row begins, are written to it.
   */
  hidden(tokens: PackedTokens, cache?: CachedRows): Tensor;
  /**
   * Returns the residual stream [N + R·T, C] that block number `block` reads, of T virtual tokens before each of R rows; of a number
   * behind the last block, what that one returns.
   */
  streamBefore(block: number, tokens: PackedTokens): Tensor;
  /** Returns `hidden` from such a stream, which it frees, by block number `block` and those above it. */
  hiddenFrom(block: number, stream: Tensor, tokens: PackedTokens): Tensor;
  /**
   * Runs a forward pass and returns how many of the lowest blocks, with the embeddings below them, depend on no tensor that is
   * trained (`untrained`), and how many of these draw no random numbers either (`fixed`).
   */
  fixedBlocks(tokens: PackedTokens): { readonly untrained: number; readonly fixed: number };
  /**
   * Returns the output of the task's head on hidden states [N, C]: [N, V] for causal-lm, [N, L] for token classification,
   * [N, 2] for question answering (start, end), [R, L] for classification of rows and images, [R, C] for embedding.
   * @param ids int64 [N]; decoders that classify rows need them to read the last token before the padding, where rows may
   *   have some
   */
  logits(hidden: Tensor, rowStarts: readonly number[], ids?: Tensor): Tensor;
  /**
   * causal-lm only. Returns the sum of the cross-entropies of hidden [N, C] against targets int64 [N] (−100: ignored), in
   * nats: a scalar.
   */
  lossSum(hidden: Tensor, targets: Tensor): Tensor;
  /**
   * Reads the weight of the layer at `path` again from the checkpoint, as dense float32 [out, in], however the layer holds
   * it in memory.
   */
  stored?: (path: string, layer: Linear) => Tensor;
}

/** Returns the output of the model's head on `tokens`, in the shape that `Model.logits` documents. */
export const outputOf = (model: Model, tokens: PackedTokens): Tensor =>
  model.logits(model.hidden(tokens), tokens.rowStarts, tokens.ids);
