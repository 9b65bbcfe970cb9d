/** How far the outputs of two models are from each other. */
import { type Model, outputOf, type PackedTokens, packImages, packTokens } from '../../nn/index.ts';
import { noGrad, ops, scope } from '../../tensor/index.ts';

/** How far the outputs of a model that was written are from those of its origin, over rows that both read. */
export interface Drift {
  /** Tokens of the rows that both read. */
  readonly tokens: number;
  /** Largest difference between two outputs (logits, or numbers of a vector). */
  readonly maxDrift: number;
  /** Mean difference between two outputs. */
  readonly meanDrift: number;
  /** Predictions on these rows. */
  readonly predictions: number;
  /** Predictions whose most likely token or class is another one. */
  readonly changed: number;
}

const rows = 4;
const rowLength = 32;

/** The model's output for some rows, the same for every model with its vocabulary or image size. */
export interface Outputs {
  readonly tokens: number;
  /** Of one prediction. */
  readonly width: number;
  readonly values: Float32Array;
}

export function driftOf(merged: Outputs, apart: Outputs): Drift {
  const { tokens, width, values } = merged;
  let [max, sum, changed] = [0, 0, 0];
  for (let at = 0; at < values.length; at += width) {
    let [likeliest, before] = [at, at];
    for (let i = at; i < at + width; i++) {
      const difference = Math.abs(values[i]! - apart.values[i]!);
      max = Math.max(max, difference);
      sum += difference;
      if (values[i]! > values[likeliest]!) likeliest = i;
      if (apart.values[i]! > apart.values[before]!) before = i;
    }
    if (likeliest !== before) changed++;
  }
  const predictions = values.length / width;
  return { tokens, maxDrift: max, meanDrift: sum / values.length, predictions, changed };
}

/** The model's output for some rows that follow from its vocabulary or image size alone. */
export function outputs(model: Model): Outputs {
  return noGrad(() => {
    using _ = scope();
    const packed = sample(model);
    const out = ops.contiguous(outputOf(model, packed));
    return { tokens: packed.rowStarts.at(-1)!, width: out.size(-1), values: out.data() as Float32Array };
  });
}

function sample({ vocabSize, contextLength, image }: Model): PackedTokens {
  if (image) {
    const size = image.channels * image.height * image.width;
    const pixels = (r: number) => Float32Array.from({ length: size }, (_, i) => Math.sin((i + 1) * (r + 1) * 0.37));
    return packImages(
      Array.from({ length: rows }, (_, r) => pixels(r)),
      image,
    );
  }
  const length = Math.min(rowLength, contextLength);
  const id = (r: number, i: number) => ((r * length + i) * 7919 + 13) % vocabSize;
  return packTokens(Array.from({ length: rows }, (_, r) => Array.from({ length }, (_, i) => id(r, i))));
}
