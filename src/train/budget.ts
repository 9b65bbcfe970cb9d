import { freeMemory } from '../base/index.ts';
import { type Model, type Precision, tensorBytes } from '../nn/index.ts';

/** What of a config decides how much memory a token takes. */
export interface BlockShape {
  readonly layers: number;
  readonly width: number;
  readonly inner: number;
  /** Blocks keep only what goes into them: all the rest is there for one of them at a time. */
  readonly checkpointed?: boolean;
}

export function shapeOf(config: object): BlockShape {
  const c = config as Record<string, number | null | undefined>;
  const width = c.hidden_size ?? c.n_embd ?? c.dim ?? 1024;
  const inner = c.intermediate_size ?? c.n_inner ?? c.hidden_dim ?? 4 * width;
  return { layers: c.num_hidden_layers ?? c.n_layer ?? c.n_layers ?? 1, width, inner };
}

/**
 * Bytes that one token keeps for the backward pass of a Llama-shaped model, float32: in each block the residual stream
 * twice, both normed inputs and the attention's output (width each), queries, keys and values, gate, up and their product.
 */
export const bytesPerToken = ({ layers, width, inner, checkpointed = false }: BlockShape): number => {
  const block = 4 * (8 * width + 3 * inner);
  return checkpointed ? 4 * layers * 2 * width + block : layers * block;
};

/** Rows at which products reach their full rate; more tokens at a time only cost memory. */
const mostUseful = { float32: 1024, mixed: 768, bfloat16: 768 } as const satisfies Record<Precision, number>;
const least = 32;
/** Bytes that activations may have beside any model. */
const modest = 2e9;

/**
 * Tokens that a micro-batch should have: what products need to be fast; less where `free` bytes are short, and where a large
 * model, whose wide products are fast with fewer rows, would have activations of more than half of its weights.
 */
export function tokenBudget(shape: BlockShape, weightBytes: number, free: number, precision: Precision): number {
  const room = Math.min(0.5 * free, Math.max(modest, 0.5 * weightBytes));
  const fits = Math.floor(room / bytesPerToken(shape));
  return Math.max(least, Math.min(mostUseful[precision], fits));
}

/** The budget for a model that is loaded, in the memory that is free now. */
export const microTokensFor = (model: Model, precision: Precision, checkpointed: boolean): number => {
  const shape = { ...shapeOf(model.config), layers: model.layers, checkpointed };
  return tokenBudget(shape, tensorBytes(model.root), freeMemory(), precision);
};
