/** What families without rotated positions share. Letters: N packed tokens, C width, H heads, D head size. */
import { GraftError } from '../base/index.ts';
import { ops, scope, type Tensor } from '../tensor/index.ts';
import type { Kernels } from './kernels.ts';
import type { LayerNorm, LinearLayer } from './layers.ts';
import type { Model } from './model.ts';
import { Module } from './module.ts';
import type { LayerKeys, Ports } from './ports.ts';
import { requireHead } from './tasks.ts';

/** What every layer of one forward pass shares. */
export interface Pass {
  readonly keys: LayerKeys;
  readonly ports: Ports;
  readonly kernels: Kernels;
}

export interface AttendOptions {
  readonly layer: number;
  readonly heads: number;
  readonly causal: boolean;
  /** Of the products of queries and keys; default D^-0.5. */
  readonly scale?: number;
}

/** Attention of queries, keys and values [N, C] as they come out of their products: [N, C]. */
export function attend(
  { keys, kernels }: Pass,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  { layer, heads, causal, scale }: AttendOptions,
): Tensor {
  const [tokens, width] = q.shape as [number, number];
  const headDim = width / heads;
  const split = (t: Tensor) => ops.view(t, [tokens, heads, headDim]);
  const seen = keys.of(layer, split(k), split(v));
  const out = kernels.attention(split(q), seen.k, seen.v, keys.rows, scale ?? headDim ** -0.5, causal, 0);
  return ops.view(out, [tokens, width]);
}

/** One block: its halves, [N, C] → [N, C] each, and the norm that belongs to each. */
export interface Halves {
  readonly layer: number;
  readonly norms: readonly [LayerNorm, LayerNorm];
  attention(x: Tensor): Tensor;
  mlp(x: Tensor): Tensor;
}

/** b = x + attention(norm₁ x), then b + mlp(norm₂ b): GPT-2, ViT. What methods put in has its say on each half. */
export function normsFirst(
  x: Tensor,
  { ports }: Pass,
  { layer, norms: [first, second], attention, mlp }: Halves,
): Tensor {
  using s = scope();
  const half = { layer, norm: undefined };
  const attended = ports.afterAttention({ ...half, delta: attention(first.forward(x)), residual: x });
  const between = ops.add(x, attended);
  const out = ports.afterMlp({ ...half, delta: mlp(second.forward(between)), residual: between });
  return s.keep(ops.add(between, out));
}

/** b = norm₁(x + attention(x)), then norm₂(b + mlp(b)): BERT. */
export function normsLast(x: Tensor, { ports }: Pass, { layer, norms, attention, mlp }: Halves): Tensor {
  using s = scope();
  const [first, second] = norms.map((norm) => (sum: Tensor) => norm.forward(sum)) as [
    (sum: Tensor) => Tensor,
    (sum: Tensor) => Tensor,
  ];
  const attended = ports.afterAttention({ layer, delta: attention(x), residual: x, norm: first });
  const between = first(ops.add(x, attended));
  const out = ports.afterMlp({ layer, delta: mlp(between), residual: between, norm: second });
  return s.keep(second(ops.add(between, out)));
}

/** x through one block after the other; what lies between two of them is freed. */
export function through(x: Tensor, blocks: readonly { forward(x: Tensor, pass: Pass): Tensor }[], pass: Pass): Tensor {
  return blocks.reduce((before, block) => {
    const after = block.forward(before, pass);
    before.dispose();
    return after;
  }, x);
}

/** D. @throws GraftError 'input' where the heads do not divide the width, which the config calls `field` */
export function headDimOf(width: number, heads: number, field = 'hidden_size'): number {
  if (width % heads === 0) return width / heads;
  throw new GraftError('input', `${field} ${width} is no multiple of ${heads} heads`);
}

/** What a model that writes no text has in the places of one that does. */
export const writesNothing: Pick<Model, 'lossSum' | 'newCache'> = {
  lossSum: () => requireHead<never>(undefined, 'causal-lm'),
  newCache: () => requireHead<never>(undefined, 'causal-lm'),
};

/** A module that holds nothing but `dense`, as checkpoints name it. */
export class Dense extends Module {
  dense: LinearLayer;

  constructor(dense: LinearLayer) {
    super();
    this.dense = dense;
  }
}
