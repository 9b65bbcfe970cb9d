import { freeMemory } from '../base/index.ts';
import { type Model, type Precision, tensorBytes } from '../nn/index.ts';

/** The part of a config that decides how much memory a token takes. */
export interface BlockShape {
  readonly layers: number;
  readonly width: number;
  readonly inner: number;
  /** Gradient checkpointing: blocks keep only their inputs, and the activations of one block exist at a time. */
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

/** Tokens at which matrix products reach their full rate; more at a time only take memory. */
const fullRateTokens = { float32: 1024, mixed: 768, bfloat16: 768 } as const satisfies Record<Precision, number>;
const minTokens = 32;
/** Bytes that activations may take with any model. */
const minActivationBytes = 2e9;

/**
 * Tokens that a micro-batch should have: as many as matrix products need for their full rate; fewer where `free` bytes are short, and
 * where the activations of a large model (whose wide products are fast with fewer tokens) would take more than half of its weights.
 */
export function tokenBudget(shape: BlockShape, weightBytes: number, free: number, precision: Precision): number {
  const room = Math.min(0.5 * free, Math.max(minActivationBytes, 0.5 * weightBytes));
  const fits = Math.floor(room / bytesPerToken(shape));
  return Math.max(minTokens, Math.min(fullRateTokens[precision], fits));
}

/** Tokens of a micro-batch for a loaded model, in the memory that is free now. */
export const microTokensFor = (model: Model, precision: Precision, checkpointed: boolean): number => {
  const shape = { ...shapeOf(model.config), layers: model.layers, checkpointed };
  return tokenBudget(shape, tensorBytes(model.root), freeMemory(), precision);
};
