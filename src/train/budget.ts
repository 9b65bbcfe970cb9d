import { currentEngine } from '../engine/index.ts';
import {
  headsOf,
  type LinearLayer,
  type Model,
  moduleAt,
  namedModules,
  type PackedTokens,
  type Precision,
  packImages,
  packTokens,
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
const rowLength = 4;
/** Rows of logits that the fused cross-entropy holds at a time (native/ops/cross_entropy.cc). */
const logitsRows = 256;
/** Gradients and other temporary tensors of a block's backward pass, as a share of all that its forward pass computes. */
const backwardShare = 0.5;
/** Matrices [n, V] that the loss of a head without a fused kernel holds in the backward pass, besides what it kept. */
const logitsGradients = 3;

/** Bytes by what they grow with: each token, each row, or neither. */
interface Grown {
  readonly perToken: number;
  readonly perRow: number;
  readonly fixed: number;
}

const sumOf = (...parts: readonly Grown[]): Grown => ({
  perToken: parts.reduce((sum, part) => sum + part.perToken, 0),
  perRow: parts.reduce((sum, part) => sum + part.perRow, 0),
  fixed: parts.reduce((sum, part) => sum + part.fixed, 0),
});

const times = (factor: number, { perToken, perRow, fixed }: Grown): Grown => ({
  perToken: factor * perToken,
  perRow: factor * perRow,
  fixed: factor * fixed,
});

const ofTokens = (perToken: number): Grown => ({ perToken, perRow: 0, fixed: 0 });

function trialTokens({ image }: Model, rows: number, length: number): PackedTokens {
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
  return packTokens(
    every(() => new Int32Array(length)),
    tasks,
  );
}

/** What a pass keeps for the backward pass. */
interface PassBytes {
  readonly blocks: Grown;
  /** Of the head and the loss of a language model. */
  readonly head: Grown;
}

/** Measures passes of small batches through the model, with all that is attached to it. */
function measurePass(model: Model): PassBytes {
  const { native } = currentEngine();
  const pass = (rows: number, length: number) => {
    using _ = scope();
    const tokens = trialTokens(model, rows, length);
    const before = native.allocated().now;
    const hidden = model.hidden(tokens);
    const body = native.allocated().now - before;
    if (model.task.name === 'causal-lm') model.lossSum(hidden, Tensor.from(new BigInt64Array(hidden.size(0))));
    return { blocks: body, head: native.allocated().now - before - body, tokens: tokens.ids.size(0) };
  };
  const longest = model.contextLength - model.ports.virtualLength;
  const length = Math.max(1, Math.min(rowLength, Math.floor(longest / 2)));
  pass(1, length); // fills caches
  const [one, two, long] = [pass(1, length), pass(2, length), pass(1, 2 * length)];
  const grown = (field: keyof PassBytes): Grown => {
    const ofRow = two[field] - one[field];
    const perToken = model.image ? ofRow / one.tokens : (long[field] - one[field]) / length;
    const perRow = model.image ? 0 : ofRow - length * perToken;
    return { perToken, perRow, fixed: one[field] - ofRow };
  };
  return { blocks: grown('blocks'), head: grown('head') };
}

/** Returns the bytes of what a block computes for one token: the output of each layer, of norms, activation and both sums. */
function computedByBlock({ root, sites, width }: Model): number {
  const prefix = `${sites.block.replace('*', '0')}.`;
  const layers = [...namedModules(root)].filter(([path, module]) => path.startsWith(prefix) && 'outFeatures' in module);
  const outputs = layers.reduce((sum, [, module]) => sum + (module as unknown as LinearLayer).outFeatures, 0);
  const { inFeatures: inner } = moduleAt(root, sites.mlp.down.replace('*', '0')) as unknown as LinearLayer;
  return 4 * (outputs + inner + 5 * width);
}

/** Bytes of activations and temporary tensors for a micro-batch of so many tokens and rows. */
export interface ActivationBytes {
  /** At the end of the forward pass or the start of the backward pass, where they are most. */
  peak(tokens: number, rows: number): number;
  /** In the backward pass of the first block, when the gradients of all others exist. */
  end(tokens: number, rows: number): number;
}

/**
 * Measures what a step of this model takes in memory besides its weights and their gradients: what passes of small batches keep, with
 * every adapter that is attached; the backward pass of one block; the logits of heads and their gradients.
 * @returns the bytes without gradient checkpointing, or with it
 */
export function activationBytes(model: Model): (checkpointed: boolean) => ActivationBytes {
  const passes = new Map<boolean, PassBytes>();
  const measured = (on: boolean) => {
    using _ = useGradientCheckpointing(on);
    const pass = passes.get(on) ?? measurePass(model);
    passes.set(on, pass);
    return pass;
  };
  return (checkpointed) => bytesOfStep(model, measured(false), checkpointed ? measured(true) : undefined);
}

/** @param replayed what is kept under gradient checkpointing, where it is on */
function bytesOfStep(model: Model, plain: PassBytes, replayed: PassBytes | undefined): ActivationBytes {
  const checkpointed = replayed !== undefined;
  const { blocks: kept, head } = replayed ?? plain;
  const keptByBlock = times(1 / model.layers, plain.blocks);
  const computed = ofTokens(Math.max(computedByBlock(model), keptByBlock.perToken));
  const inBlock = times(backwardShare, computed);
  // The last block's tensors live until it ends; under checkpointing a block is computed again before its backward pass.
  const forward = checkpointed ? sumOf(kept, computed) : sumOf(kept, computed, times(-1, keptByBlock));
  const backward = sumOf(kept, head, inBlock, ...(checkpointed ? [keptByBlock] : []));
  const end = sumOf(keptByBlock, inBlock);
  const [outputLayer] = headsOf(model.sites).map((path) => moduleAt(model.root, path) as { plain?(): unknown });
  const isFused = model.task.name === 'causal-lm' && outputLayer?.plain?.() !== undefined;
  // What a language model's loss keeps is in `head`; other losses keep one such matrix too.
  const matrices = logitsGradients + (model.task.name === 'causal-lm' ? 0 : 1);
  const logits = sumOf(kept, head, ofTokens(isFused ? 0 : matrices * 4 * outputsPerToken(model)));
  const bytesOf = ({ perToken, perRow, fixed }: Grown, tokens: number, rows: number) =>
    tokens * perToken + rows * perRow + fixed;
  return {
    peak(tokens, rows) {
      const chunk = isFused ? 4 * Math.min(tokens, logitsRows) * model.vocabSize : 0;
      const [inForward, inBackward, inLoss] = [forward, backward, logits].map((part) => bytesOf(part, tokens, rows));
      return Math.max(inForward!, inBackward!, inLoss! + chunk);
    },
    end: (tokens, rows) => bytesOf(end, tokens, rows),
  };
}

/** Numbers that the head returns for each token; 0 where it reads one token of a row. */
function outputsPerToken({ task, vocabSize }: Model): number {
  if (task.name === 'causal-lm') return vocabSize;
  return task.name === 'token-classification' || task.name === 'question-answering' ? task.labels.length : 0;
}

/** Tokens of a micro-batch of short rows, whose activations fit into `free` bytes. */
export function microTokensFor(
  activations: ActivationBytes,
  weightBytes: number,
  free: number,
  precision: Precision,
): number {
  const bytes = (tokens: number) => activations.peak(tokens, tokens / rowLength);
  const [few, many] = [minTokens, fullRateTokens[precision]];
  const perToken = (bytes(many) - bytes(few)) / (many - few);
  const fixed = bytes(many) - many * perToken;
  return tokensThatFit(perToken, weightBytes, Math.max(0, free - fixed), precision);
}
