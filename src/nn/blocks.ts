/** What families without rotated positions share. Letters: N packed tokens, C width, H heads, D head size. */
import { ops, type Tensor } from '../tensor/index.ts';
import type { Kernels } from './kernels.ts';
import type { LinearLayer } from './layers.ts';
import { Module } from './module.ts';
import type { LayerKeys, Ports } from './ports.ts';

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

/** A module that holds nothing but `dense`, as checkpoints name it. */
export class Dense extends Module {
  dense: LinearLayer;

  constructor(dense: LinearLayer) {
    super();
    this.dense = dense;
  }
}
