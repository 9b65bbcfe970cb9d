import { freeMemory } from '../base/index.ts';
import { currentEngine } from '../engine/index.ts';
import {
  headsOf,
  type LinearLayer,
  type Model,
  moduleAt,
  namedModules,
  namedTensors,
  type PackedTokens,
  type Precision,
  packImages,
  packTokens,
  tensorBytes,
  useGradientCheckpointing,
} from '../nn/index.ts';
import { scope, Tensor } from '../tensor/index.ts';

/** The part of a config that decides how much memory a token takes. */
export interface BlockShape {
  readonly layers: number;
  readonly width: number;
  readonly inner: number;
  /** Gradient checkpointing: blocks keep only their inputs, and the activations of one block exist at a time. */
  readonly checkpointed?: boolean;
}

/** Returns the shape of a model's blocks, read from the shapes of its stored weights by key: configs leave out defaults. */
export function shapeOf(
  stored: ReadonlyMap<string, { readonly entry: { readonly shape: readonly number[] } }>,
): BlockShape {
  let layers = 0;
  const sizes: number[] = [];
  for (const [key, { entry }] of stored) {
    const layer = /(?:^|\.)(\d+)\./.exec(key)?.[1];
    if (layer === undefined) continue;
    layers = Math.max(layers, Number(layer) + 1);
    if (layer === '0' && entry.shape.length === 2) sizes.push(...entry.shape);
  }
  // Most sides of a block's matrices are as wide as the residual stream; the longest is its widest layer.
  const counts = [...Map.groupBy(sizes, (size) => size)].map(([size, all]) => ({ size, count: all.length }));
  const { size: width } = counts.reduce((most, each) => (each.count > most.count ? each : most), { size: 1, count: 0 });
  return { layers: Math.max(1, layers), width, inner: Math.max(width, ...sizes) };
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
export const tokenBudget = (shape: BlockShape, weightBytes: number, free: number, precision: Precision): number =>
  tokensThatFit(bytesPerToken(shape), weightBytes, free, precision);

function tokensThatFit(perToken: number, weightBytes: number, free: number, precision: Precision): number {
  const room = Math.min(0.5 * free, Math.max(minActivationBytes, 0.5 * weightBytes));
  const fits = Math.floor(room / perToken);
  return Math.max(minTokens, Math.min(fullRateTokens[precision], fits));
}

/** Tokens of each row of the passes that are measured: few, so that they take no time beside loading the model. */
const rowLength = 16;
/** Rows of logits that the fused cross-entropy holds at a time (native/ops/cross_entropy.cc). */
const logitsRows = 256;
/** Gradients and other temporary tensors of a block's backward pass, as a share of all that its forward pass computes. */
const backwardShare = 0.5;
/** Matrices [n, V] that the loss of a head without a fused kernel holds in the backward pass, besides what it kept. */
const logitsGradients = 3;

function trialTokens({ image, contextLength, ports }: Model, rows: number): PackedTokens {
  const every = <T>(make: () => T) => Array.from({ length: rows }, make);
  const tasks = every(() => 0);
  if (image) {
    const size = image.channels * image.height * image.width;
    return {
      ...packImages(
        every(() => new Float32Array(size)),
        image,
      ),
      tasks,
    };
  }
  const length = Math.max(1, Math.min(rowLength, contextLength - ports.virtualLength));
  return packTokens(
    every(() => new Int32Array(length)),
    0,
    tasks,
  );
}

/** Bytes for one more token in the forward pass of a model. */
interface PassBytes {
  /** What the blocks keep for the backward pass. */
  readonly kept: number;
  /** What the head and the loss of a language model keep. */
  readonly head: number;
}

/** Measures the pass of two small batches through the model, with all that is attached to it. */
function passPerToken(model: Model): PassBytes {
  const { native } = currentEngine();
  const pass = (rows: number) => {
    using _ = scope();
    const tokens = trialTokens(model, rows);
    const before = native.allocated().now;
    const hidden = model.hidden(tokens);
    const body = native.allocated().now - before;
    if (model.task.name === 'causal-lm') model.lossSum(hidden, Tensor.from(new BigInt64Array(hidden.size(0))));
    return { kept: body, head: native.allocated().now - before - body, tokens: tokens.ids.size(0) };
  };
  pass(1); // fills caches
  const [one, two] = [pass(1), pass(2)];
  const perToken = (field: keyof PassBytes) => (two[field] - one[field]) / (two.tokens - one.tokens);
  return { kept: perToken('kept'), head: perToken('head') };
}

/** Returns the bytes of what a block computes for one token: the output of each layer, of norms, activation and both sums. */
function computedByBlock({ root, sites, width }: Model): number {
  const prefix = `${sites.block.replace('*', '0')}.`;
  const layers = [...namedModules(root)].filter(([path, module]) => path.startsWith(prefix) && 'outFeatures' in module);
  const outputs = layers.reduce((sum, [, module]) => sum + (module as unknown as LinearLayer).outFeatures, 0);
  const { inFeatures: inner } = moduleAt(root, sites.mlp.down.replace('*', '0')) as unknown as LinearLayer;
  return 4 * (outputs + inner + 5 * width);
}

/** Bytes that activations of a loaded model take: for each token, and whatever the number of tokens. */
export interface ActivationBytes {
  readonly perToken: number;
  readonly fixed: number;
}

/**
 * Measures what a step of this model takes in memory besides its weights: what the pass of two small batches keeps, with every adapter
 * that is attached; the backward pass of one block; the logits of heads and their gradients; and the gradients of what is trained.
 * @param inBackward parameters are updated in the backward pass, which frees their gradients
 */
export function activationBytes(model: Model, checkpointed: boolean, inBackward = false): ActivationBytes {
  const measured = (on: boolean) => {
    using _ = useGradientCheckpointing(on);
    return passPerToken(model);
  };
  const plain = measured(false);
  const { kept, head } = checkpointed ? measured(true) : plain;
  const keptByBlock = plain.kept / model.layers;
  const computed = Math.max(computedByBlock(model), keptByBlock);
  // The last block's tensors live until it ends; under checkpointing a block is computed again before its backward pass.
  const forward = kept + computed - (checkpointed ? 0 : keptByBlock);
  const backward = kept + (checkpointed ? keptByBlock : 0) + backwardShare * computed;
  const [outputLayer] = headsOf(model.sites).map((path) => moduleAt(model.root, path) as { plain?(): unknown });
  const isFused = model.task.name === 'causal-lm' && outputLayer?.plain?.() !== undefined;
  // What a language model's loss keeps is in `head`; other losses keep one such matrix too.
  const matrices = logitsGradients + (model.task.name === 'causal-lm' ? 0 : 1);
  const logits = isFused ? 0 : matrices * 4 * outputsPerToken(model);
  const trained = new Set([...namedTensors(model.root)].map(([, tensor]) => tensor).filter((t) => t.requiresGrad));
  const sizes = [...trained].map(({ nbytes }) => nbytes);
  // The gradient of a tied table waits for its second term.
  const gradients = inBackward ? 2 * Math.max(0, ...sizes) : sizes.reduce((sum, bytes) => sum + bytes, 0);
  return {
    perToken: Math.max(forward, backward + head, kept + head + logits),
    fixed: gradients + (isFused ? 4 * logitsRows * model.vocabSize : 0),
  };
}

/** Numbers that the head returns for each token; 0 where it reads one token of a row. */
function outputsPerToken({ task, vocabSize }: Model): number {
  if (task.name === 'causal-lm') return vocabSize;
  return task.name === 'token-classification' || task.name === 'question-answering' ? task.labels.length : 0;
}

/** Tokens of a micro-batch for a loaded model, in the memory that is free now. */
export const microTokensFor = (model: Model, precision: Precision, { perToken, fixed }: ActivationBytes): number =>
  tokensThatFit(perToken, tensorBytes(model.root), Math.max(0, freeMemory() - fixed), precision);
