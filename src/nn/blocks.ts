/** What families share: the way through the blocks, halves of a block, attention. Letters: N packed tokens, C width, H heads, D head size. */
import { GraftError } from '../base/index.ts';
import { checkpoint, ops, scope, type Tensor } from '../tensor/index.ts';
import type { Kernels } from './kernels.ts';
import type { LayerNorm, LinearLayer } from './layers.ts';
import { Module } from './module.ts';
import type { LayerKeys, Ports } from './ports.ts';

/** What every layer of one forward pass shares. */
export interface Pass {
  readonly keys: LayerKeys;
  readonly ports: Ports;
  readonly kernels: Kernels;
  /** Cosines and sines of the tokens' positions, in families that rotate queries and keys. */
  readonly rotation?: readonly [cos: Tensor, sin: Tensor];
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

/** Attention of tokens to one another, x [N, C] → [N, C], by layers for queries, keys and values; the output projection comes after. */
export const selfAttention = (
  x: Tensor,
  pass: Pass,
  [query, key, value]: readonly [query: LinearLayer, key: LinearLayer, value: LinearLayer],
  options: AttendOptions,
): Tensor => attend(pass, query.forward(x), key.forward(x), value.forward(x), options);

/** The two sublayers of a block, [N, C] → [N, C] each, and the norm of each. */
export interface Sublayers {
  /** Number of the block, from 0. */
  readonly layer: number;
  readonly norms: readonly [attention: LayerNorm, mlp: LayerNorm];
  readonly attention: { forward(x: Tensor, pass: Pass): Tensor };
  readonly mlp: { forward(x: Tensor): Tensor };
}

/** A block whose norms come before its sublayers (GPT-2, ViT): y = x + attention(norm₁ x), then y + mlp(norm₂ y). [N, C] → [N, C] */
export function preNormBlock(x: Tensor, pass: Pass, { layer, norms, attention, mlp }: Sublayers): Tensor {
  using s = scope();
  const { ports, keys } = pass;
  const common = { layer, norm: undefined, rowStarts: keys.rows.qStarts };
  const attended = attention.forward(norms[0].forward(x), pass);
  const y = ops.add(x, ports.afterAttention({ ...common, delta: attended, residual: x }));
  const fed = mlp.forward(norms[1].forward(y));
  return s.keep(ops.add(y, ports.afterMlp({ ...common, delta: fed, residual: y })));
}

/** A block whose norms come after its sublayers (BERT): y = norm₁(x + attention(x)), then norm₂(y + mlp(y)). [N, C] → [N, C] */
export function postNormBlock(x: Tensor, pass: Pass, { layer, norms, attention, mlp }: Sublayers): Tensor {
  using s = scope();
  const { ports, keys } = pass;
  const [norm1, norm2] = [(sum: Tensor) => norms[0].forward(sum), (sum: Tensor) => norms[1].forward(sum)];
  const common = { layer, rowStarts: keys.rows.qStarts };
  const attended = attention.forward(x, pass);
  const y = norm1(ops.add(x, ports.afterAttention({ ...common, delta: attended, residual: x, norm: norm1 })));
  const fed = mlp.forward(y);
  return s.keep(norm2(ops.add(y, ports.afterMlp({ ...common, delta: fed, residual: y, norm: norm2 }))));
}

let checkpointing = false;

/** Whether the passes that follow keep of each block only what goes into it, and compute the rest again in the backward pass; `using` puts back what was. */
export function useGradientCheckpointing(on: boolean): Disposable {
  const before = checkpointing;
  checkpointing = on;
  return {
    [Symbol.dispose]: () => {
      checkpointing = before;
    },
  };
}

/** A block of the model: the residual stream, in one part or as a sum not yet taken, [N, C] each → the stream behind it. */
export type Block = (stream: readonly Tensor[], pass: Pass) => readonly Tensor[];

/** Blocks that take and return the stream in one part. */
export const blocksOf = (layers: readonly { forward(x: Tensor, pass: Pass): Tensor }[]): Block[] =>
  layers.map((layer) => ([x], pass) => [layer.forward(x!, pass)]);

/** The stream through one block after the other; what lies between two of them is freed. */
export function flow(stream: readonly Tensor[], blocks: readonly Block[], pass: Pass): readonly Tensor[] {
  return blocks.reduce((before, block, layer) => {
    const after = checkpointing ? checkpointed(before, block, layer, pass) : block(before, pass);
    for (const part of before) part.dispose();
    return after;
  }, stream);
}

/** All that a block reads of the pass goes in beside the stream: in the backward pass the pass is over. */
function checkpointed(stream: readonly Tensor[], block: Block, layer: number, pass: Pass): readonly Tensor[] {
  const rotation = pass.rotation ?? [];
  const inputs = [...stream, ...rotation, ...pass.keys.others(layer)];
  const [turned, rest] = [stream.length, stream.length + rotation.length];
  return checkpoint((...given) => {
    const [cos, sin] = given.slice(turned, rest);
    const keys = pass.keys.with(given.slice(rest));
    return block(given.slice(0, turned), { ...pass, keys, ...(cos && sin && { rotation: [cos, sin] }) });
  }, inputs);
}

/** D. @throws GraftError 'input' where the heads do not divide the width, which the config calls `field` */
export function headDimOf(width: number, heads: number, field = 'hidden_size'): number {
  if (width % heads === 0) return width / heads;
  throw new GraftError('input', `${field} ${width} is no multiple of ${heads} heads`);
}

/** A module that holds nothing but `dense`, as checkpoints name it. */
export class Dense extends Module {
  dense: LinearLayer;

  constructor(dense: LinearLayer) {
    super();
    this.dense = dense;
  }
}
