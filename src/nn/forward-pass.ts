import { scope, type Tensor } from '../tensor/index.ts';
import { type Block, flow } from './blocks.ts';
import type { Kernels } from './kernels.ts';
import type { Model } from './model.ts';
import type { PackedTokens } from './packed.ts';
import type { BlockInput, Ports } from './ports.ts';

/** The stages of a model's forward pass, in the order in which they run. N packed tokens, C width, D head size. */
export interface ForwardStages {
  readonly kernels: Kernels;
  readonly ports: Ports;
  /** Returns the tokens' own embeddings [N, C], without positions; methods put virtual tokens in front of them. */
  embed(tokens: PackedTokens): Tensor;
  /** The head reads the first token of each row, also where it is a virtual one (`Ports.addVirtualTokens`). */
  readonly readsFirstToken?: boolean;
  /**
   * Returns the cosines and sines [N, D/2] that queries and keys are rotated by.
   * @param cachedTokens how many tokens of the row the cache holds
   */
  rotation?(input: BlockInput, cachedTokens: number): readonly [cos: Tensor, sin: Tensor];
  /**
   * Returns the first block's input from the embeddings, virtual tokens included: adds positions and token types, and norms
   * them. Default: the embeddings.
   */
  addPositions?(input: BlockInput): Tensor;
  /** Called at each pass, since methods may replace modules. */
  blocks(): readonly Block[];
  /** Returns the hidden states [N, C] from the output of the last block. Default: its only tensor. */
  finalNorm?(stream: readonly Tensor[]): Tensor;
}

/**
 * Returns `Model.hidden`: the forward pass through these stages and the model's ports, which every family so calls at the same
 * places and in the same order.
 */
export const forwardPass =
  (stages: ForwardStages): Model['hidden'] =>
  (tokens, cache) => {
    using s = scope();
    const { kernels, ports } = stages;
    const input = ports.addVirtualTokens(stages.embed(tokens), tokens, cache, stages.readsFirstToken);
    const rotation = stages.rotation?.(input, cache?.tokens ?? 0);
    const keyValues = ports.keyValues(input.rowStarts, cache);
    const pass = { keyValues, ports, kernels, ...(rotation && { rotation }) };
    const x = ports.afterEmbedding(stages.addPositions?.(input) ?? input.x);
    const stream = flow([x], stages.blocks(), pass);
    cache?.advance(input.rowStarts.at(-1)!, tokens.rowStarts.at(-1)!);
    const hidden = stages.finalNorm?.(stream) ?? stream[0]!;
    return s.keep(ports.afterFinalNorm(input.strip(hidden)));
  };
