/** What families share: the way through the blocks, halves of a block, attention. Letters: N packed tokens, C width, H heads, D head size. */
import { GraftError } from '../base/index.ts';
import { checkpoint, ops, scope, type Tensor } from '../tensor/index.ts';
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
  { ports, keys }: Pass,
  { layer, norms: [first, second], attention, mlp }: Halves,
): Tensor {
  using s = scope();
  const half = { layer, norm: undefined, rowStarts: keys.rows.qStarts };
  const attended = ports.afterAttention({ ...half, delta: attention(first.forward(x)), residual: x });
  const between = ops.add(x, attended);
  const out = ports.afterMlp({ ...half, delta: mlp(second.forward(between)), residual: between });
  return s.keep(ops.add(between, out));
}

/** b = norm₁(x + attention(x)), then norm₂(b + mlp(b)): BERT. */
export function normsLast(x: Tensor, { ports, keys }: Pass, { layer, norms, attention, mlp }: Halves): Tensor {
  using s = scope();
  const [first, second] = norms.map((norm) => (sum: Tensor) => norm.forward(sum)) as [
    (sum: Tensor) => Tensor,
    (sum: Tensor) => Tensor,
  ];
  const half = { layer, rowStarts: keys.rows.qStarts };
  const attended = ports.afterAttention({ ...half, delta: attention(x), residual: x, norm: first });
  const between = first(ops.add(x, attended));
  const out = ports.afterMlp({ ...half, delta: mlp(between), residual: between, norm: second });
  return s.keep(second(ops.add(between, out)));
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

/** The stream, in one part or as a sum not yet taken, through one block after the other; what lies between two of them is freed. */
export function flow(
  stream: readonly Tensor[],
  blocks: readonly ((stream: readonly Tensor[], pass: Pass) => readonly Tensor[])[],
  pass: Pass,
): readonly Tensor[] {
  return blocks.reduce((before, block, layer) => {
    const after = checkpointing ? checkpointed(before, block, layer, pass) : block(before, pass);
    for (const part of before) part.dispose();
    return after;
  }, stream);
}

/** The same for blocks that take and give the stream in one part. */
export const through = (x: Tensor, blocks: readonly { forward(x: Tensor, pass: Pass): Tensor }[], pass: Pass): Tensor =>
  flow(
    [x],
    blocks.map((block) => ([y], given) => [block.forward(y!, given)]),
    pass,
  )[0]!;

/** All that a block reads of the pass goes in beside the stream: in the backward pass the pass is over. */
function checkpointed(
  stream: readonly Tensor[],
  block: (stream: readonly Tensor[], pass: Pass) => readonly Tensor[],
  layer: number,
  pass: Pass,
): readonly Tensor[] {
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
