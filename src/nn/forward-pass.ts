import { ops, randomState, scope, type Tensor } from '../tensor/index.ts';
import { type Block, flow, gatedEmbeddings, type Pass } from './blocks.ts';
import type { Kernels } from './kernels.ts';
import type { CachedRows } from './kv-pool.ts';
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
  /** Returns the cosines and sines [N, D/2] that queries and keys are rotated by. */
  rotation?(input: BlockInput): readonly [cos: Tensor, sin: Tensor];
  /**
   * Returns the first block's input from the embeddings, virtual tokens included: adds positions and token types, and norms
   * them. Default: the embeddings.
   */
  addPositions?(input: BlockInput): Tensor;
  /** Called at each pass, since methods may replace modules. */
  blocks(): readonly Block[];
  /**
   * Returns the hidden states [N, C] from the output of the last block, in one tensor or two (`Block`). Default: the only tensor.
   */
  finalNorm?(stream: readonly Tensor[]): Tensor;
}

/** The forward pass of a model, whole and in two parts. */
export type ForwardPass = Pick<Model, 'hidden' | 'streamBefore' | 'hiddenFrom' | 'fixedBlocks'>;

/**
 * Returns the forward pass through these stages and the model's ports, which every family so calls at the same places and in the
 * same order.
 */
export function forwardPass(stages: ForwardStages): ForwardPass {
  const { kernels, ports } = stages;
  const passOf = (input: BlockInput, { adapters }: PackedTokens, cache?: CachedRows): Pass => {
    const rotation = stages.rotation?.(input);
    const keyValues = ports.keyValues(input.rowStarts, adapters, cache);
    return { keyValues, ports, kernels, ...(rotation && { rotation }) };
  };
  const firstInput = (input: BlockInput) => ports.afterEmbedding(stages.addPositions?.(input) ?? input.x);
  const finish = (stream: readonly Tensor[], input: BlockInput) => {
    const hidden = stages.finalNorm?.(stream) ?? stream[0]!;
    return ports.afterFinalNorm(input.strip(hidden));
  };
  const begin = (tokens: PackedTokens, cache?: CachedRows, stream?: Tensor) => {
    ports.selectRuns(tokens.rowStarts, tokens.adapters);
    const embeddings = stream ?? gatedEmbeddings(() => stages.embed(tokens));
    return ports.addVirtualTokens(embeddings, tokens, cache, stages.readsFirstToken);
  };

  return {
    hidden(tokens, cache) {
      using s = scope();
      const input = begin(tokens, cache);
      const pass = passOf(input, tokens, cache);
      const stream = flow([firstInput(input)], stages.blocks(), pass);
      return s.keep(finish(stream, input));
    },

    streamBefore(block, tokens) {
      using s = scope();
      const input = begin(tokens);
      const stream = flow([firstInput(input)], stages.blocks().slice(0, block), passOf(input, tokens));
      return s.keep(stream.length === 1 ? stream[0]! : ops.add(stream[0]!, stream[1]!));
    },

    hiddenFrom(block, stream, tokens) {
      using s = scope();
      // Without a prompt only the number of the embeddings counts.
      const input = begin(tokens, undefined, ports.promptLength === 0 ? stream : undefined);
      return s.keep(finish(flow([stream], stages.blocks().slice(block), passOf(input, tokens), block), input));
    },

    fixedBlocks(tokens) {
      using _ = scope();
      const before = Buffer.from(randomState());
      let [untrained, fixed] = [0, 0];
      const look = (stream: readonly Tensor[], block: number) => {
        if (stream.some(({ requiresGrad }) => requiresGrad)) return;
        untrained = block;
        if (before.equals(Buffer.from(randomState()))) fixed = block;
      };
      const blocks = stages.blocks().map((block, i): Block => {
        return (stream, pass) => {
          look(stream, i);
          return block(stream, pass);
        };
      });
      const input = begin(tokens);
      look(flow([firstInput(input)], blocks, passOf(input, tokens)), blocks.length);
      return { untrained, fixed };
    },
  };
}
