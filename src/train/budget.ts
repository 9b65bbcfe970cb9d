import { freemem } from 'node:os';
import type { Model } from '../nn/index.ts';

/**
 * Float32 numbers that one token of a Llama-shaped block keeps for its backward pass: the residual stream twice, both
 * normed inputs and the attention's output (width each), queries, keys and values, gate, up and their product.
 */
function bytesPerToken(model: Model): number {
  const c = model.config as Record<string, number | undefined>;
  const width = c.hidden_size ?? 1024;
  const inner = c.intermediate_size ?? 4 * width;
  return 4 * model.layers * (8 * width + 3 * inner);
}

/** Products reach their full rate at about a thousand rows; more tokens at a time only cost memory. */
const mostUseful = 768;

/** Tokens that a micro-batch should have: what products need to be fast, less where memory is short. */
export function microTokensFor(model: Model): number {
  const fits = Math.floor((0.5 * freemem()) / bytesPerToken(model));
  return Math.max(32, Math.min(mostUseful, fits));
}
