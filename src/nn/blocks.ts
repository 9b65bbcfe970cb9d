/**
 * The transformer blocks that families share: attention, pre-norm and post-norm blocks, the loop over the blocks. Letters:
 * N packed tokens, C width, H heads, D head size.
 */
import { GraftError } from '../base/index.ts';
import { checkpoint, type Gate, gated, ops, scope, type Tensor } from '../tensor/index.ts';
import type { Kernels } from './kernels.ts';
import type { KeyValueSource } from './key-values.ts';
import { forwardAll, type LayerNorm, type LinearLayer } from './layers.ts';
import { Module } from './module.ts';
import type { Ports } from './ports.ts';

/** What all layers of one forward pass share. */
export interface Pass {
  readonly keyValues: KeyValueSource;
  readonly ports: Ports;
  readonly kernels: Kernels;
  /** Cosines and sines [N, D/2] of the tokens' positions, in families with rotary positions. */
  readonly rotation?: readonly [cos: Tensor, sin: Tensor];
}

export interface AttendOptions {
  /** Number of the layer, from 0. */
  readonly layer: number;
  readonly heads: number;
  readonly causal: boolean;
  /** Factor of the products of queries and keys; default D^-0.5. */
  readonly scale?: number;
  /** Earlier tokens that a query attends to, itself included; default 0: all. */
  readonly window?: number;
  /** Rotates queries and keys by the tokens' positions. */
  readonly rotates?: boolean;
}

/** Multi-head attention of queries [N, H·D], keys and values [N, K·D], before the output projection: [N, H·D]. */
export function attend(
  { keyValues, kernels, rotation }: Pass,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  { layer, heads, causal, scale, window = 0, rotates = false }: AttendOptions,
): Tensor {
  const headDim = q.size(1) / heads;
  const factor = scale ?? headDim ** -0.5;
  const pooled = keyValues.pooled(layer);
  if (pooled) return kernels.pooledAttention(q, k, v, rotates ? rotation : undefined, pooled, factor, causal, window);
  const split = (t: Tensor) => ops.view(t, [t.size(0), t.size(1) / headDim, headDim]);
  const rotated = (t: Tensor) => (rotates ? kernels.rope(split(t), ...rotation!) : split(t));
  const queries = rotated(q);
  const visible = keyValues.forLayer(layer, rotated(k), split(v));
  const out = kernels.attention(queries, visible.k, visible.v, keyValues.rows, factor, causal, window);
  return ops.view(out, [out.size(0), heads * headDim]);
}

/** Multi-head self-attention of x [N, C], before the output projection: [N, C]. */
export const selfAttention = (
  x: Tensor,
  pass: Pass,
  [query, key, value]: readonly [query: LinearLayer, key: LinearLayer, value: LinearLayer],
  options: AttendOptions,
): Tensor => {
  const [q, k, v] = forwardAll(x, [query, key, value]) as [Tensor, Tensor, Tensor];
  return attend(pass, q, k, v, options);
};

/** The two sublayers of a block, [N, C] → [N, C] each, and the norm of each. */
export interface Sublayers {
  /** Number of the block, from 0. */
  readonly layer: number;
  readonly norms: readonly [attention: LayerNorm, mlp: LayerNorm];
  readonly attention: { forward(x: Tensor, pass: Pass): Tensor };
  readonly mlp: { forward(x: Tensor): Tensor };
}

/**
 * A block whose norms come before its sublayers (GPT-2, ViT): y = x + attention(norm₁ x), then y + mlp(norm₂ y). [N, C] →
 * [N, C]
 * @param parallel the MLP reads the block's input too (GPT-J, GPT-NeoX): y + mlp(norm₂ x)
 */
export function preNormBlock(
  x: Tensor,
  pass: Pass,
  { layer, norms, attention, mlp }: Sublayers,
  parallel = false,
): Tensor {
  using s = scope();
  const { ports, keyValues } = pass;
  const common = { layer, norm: undefined, rowStarts: keyValues.rows.qStarts };
  const attentionOutput = attention.forward(norms[0].forward(x), pass);
  const y = ops.add(x, ports.afterAttention({ ...common, delta: attentionOutput, residual: x }));
  const mlpOutput = mlp.forward(norms[1].forward(parallel ? x : y));
  return s.keep(ops.add(y, ports.afterMlp({ ...common, delta: mlpOutput, residual: y })));
}

/**
 * A block whose norms come after its sublayers (BERT): y = norm₁(x + attention(x)), then norm₂(y + mlp(y)). [N, C] → [N, C]
 */
export function postNormBlock(x: Tensor, pass: Pass, { layer, norms, attention, mlp }: Sublayers): Tensor {
  using s = scope();
  const { ports, keyValues } = pass;
  const [norm1, norm2] = [(sum: Tensor) => norms[0].forward(sum), (sum: Tensor) => norms[1].forward(sum)];
  const common = { layer, rowStarts: keyValues.rows.qStarts };
  const attentionOutput = attention.forward(x, pass);
  const y = norm1(ops.add(x, ports.afterAttention({ ...common, delta: attentionOutput, residual: x, norm: norm1 })));
  const mlpOutput = mlp.forward(y);
  return s.keep(norm2(ops.add(y, ports.afterMlp({ ...common, delta: mlpOutput, residual: y, norm: norm2 }))));
}

let checkpointing = false;

/**
 * Turns gradient checkpointing on or off: forward passes keep only the input of each block, and the backward pass computes
 * the block again. Disposing restores the former setting.
 */
export function useGradientCheckpointing(on: boolean): Disposable {
  const previous = checkpointing;
  checkpointing = on;
  return {
    [Symbol.dispose]: () => {
      checkpointing = previous;
    },
  };
}

/** What parts of a forward pass run in, wherever a pass goes through them. */
export interface Gates {
  /** Returns the gate of a block by its number; it spans the backward pass too. */
  block(block: number): Gate;
  /** The gate of the embeddings, which are computed again in the backward pass. Default: none. */
  readonly embeddings?: Gate | undefined;
}

let gates: Gates | undefined;

/** Lets parts of forward passes run in gates. Disposing restores what was before. */
export function useGates(used: Gates): Disposable {
  const previous = gates;
  gates = used;
  return {
    [Symbol.dispose]: () => {
      gates = previous;
    },
  };
}

/** Whether blocks run in gates: weights are then other memory in each pass. */
export const areBlocksGated = (): boolean => gates !== undefined;

/** Returns what `embed` computes, in the gate of the embeddings where there is one. */
export function gatedEmbeddings(embed: () => Tensor): Tensor {
  const gate = gates?.embeddings;
  return gate ? checkpoint(() => [embed()], [], gate)[0]! : embed();
}

/** A block of a model, as a function of the residual stream: one tensor [N, C], or two whose sum is not yet taken. */
export type Block = (stream: readonly Tensor[], pass: Pass) => readonly Tensor[];

/** The blocks of layers that take and return the residual stream as one tensor. */
export const blocksOf = (layers: readonly { forward(x: Tensor, pass: Pass): Tensor }[]): Block[] =>
  layers.map((layer) => ([x], pass) => [layer.forward(x!, pass)]);

/**
 * Runs one block after the other on the residual stream; the stream between two blocks is freed.
 * @param first number of the first of these blocks
 */
export function flow(stream: readonly Tensor[], blocks: readonly Block[], pass: Pass, first = 0): readonly Tensor[] {
  return blocks.reduce((input, block, i) => {
    const gate = gates?.block(first + i);
    const output = checkpointing || gate ? alone(input, block, first + i, pass, gate) : block(input, pass);
    for (const tensor of input) tensor.dispose();
    return output;
  }, stream);
}

/**
 * Runs a block whose backward pass is one of its own: under `checkpoint`, or `gated`. What it reads of the pass is an input too, since the
 * pass is over when the block runs again.
 */
function alone(
  stream: readonly Tensor[],
  block: Block,
  layer: number,
  pass: Pass,
  gate: Gate | undefined,
): readonly Tensor[] {
  const rotation = pass.rotation ?? [];
  const [rotationStart, prefixStart] = [stream.length, stream.length + rotation.length];
  const forward = (...inputs: readonly Tensor[]) => {
    const [cos, sin] = inputs.slice(rotationStart, prefixStart);
    const keyValues = pass.keyValues.withPrefixTensors(inputs.slice(prefixStart));
    return block(inputs.slice(0, rotationStart), { ...pass, keyValues, ...(cos && sin && { rotation: [cos, sin] }) });
  };
  const inputs = [...stream, ...rotation, ...pass.keyValues.prefixTensors(layer)];
  return gate && !checkpointing ? gated(forward, inputs, gate) : checkpoint(forward, inputs, gate);
}

/**
 * Returns the size D of an attention head.
 * @param field the config's name of the width
 * @throws GraftError 'input' where the number of heads does not divide the width
 */
export function headDimOf(width: number, heads: number, field = 'hidden_size'): number {
  if (width % heads === 0) return width / heads;
  throw new GraftError('input', `${field} ${width} is not a multiple of the ${heads} attention heads`);
}

/** A module whose only field is `dense`, a linear layer: BERT's checkpoints nest several of their layers so. */
export class Dense extends Module {
  dense: LinearLayer;

  constructor(dense: LinearLayer) {
    super();
    this.dense = dense;
  }
}
