import { scope, type Tensor } from '../tensor/index.ts';
import { type Block, flow } from './blocks.ts';
import type { Kernels } from './kernels.ts';
import type { Model } from './model.ts';
import type { PackedTokens } from './packed.ts';
import type { BlockInput, Ports } from './ports.ts';

/** The parts of a model's forward pass, in the order in which they run. N packed tokens, C width, D head size. */
export interface ForwardStages {
  readonly kernels: Kernels;
  readonly ports: Ports;
  /** The tokens' own embeddings [N, C], without positions: prompts of methods are put in front of them. */
  embed(tokens: PackedTokens): Tensor;
  /** Heads read the first token of each row, also where it is a virtual one (`Ports.enter`). */
  readonly pooled?: boolean;
  /** Cosines and sines [N, D/2] that queries and keys are rotated by. */
  rotation?(input: BlockInput): readonly [cos: Tensor, sin: Tensor];
  /** Embeddings, virtual tokens included, with all that the first block reads: positions, types, a norm. Default: as they are. */
  addPositions?(input: BlockInput): Tensor;
  /** Asked for at each pass, since methods may replace modules. */
  blocks(): readonly Block[];
  /** The stream behind the last block → hidden states [N, C]. Default: its only part. */
  finalNorm?(stream: readonly Tensor[]): Tensor;
}

/**
 * Returns `Model.hidden`: the forward pass through these stages, with all that methods put in through the model's ports. With
 * a cache (one row only), keys and values are read from it and added to it.
 */
export const forwardPass =
  (stages: ForwardStages): Model['hidden'] =>
  (tokens, cache) => {
    using s = scope();
    const { kernels, ports } = stages;
    const input = ports.enter(stages.embed(tokens), tokens, cache, stages.pooled);
    const rotation = stages.rotation?.(input);
    const pass = { keys: ports.keys(input.rowStarts, cache), ports, kernels, ...(rotation && { rotation }) };
    const x = ports.afterEmbedding(stages.addPositions?.(input) ?? input.x);
    const stream = flow([x], stages.blocks(), pass);
    cache?.advance(input.rowStarts.at(-1)!, tokens.rowStarts.at(-1)!);
    const hidden = stages.finalNorm?.(stream) ?? stream[0]!;
    return s.keep(ports.afterFinalNorm(input.strip(hidden)));
  };
