import { loadAdapter, taskOfAdapter } from '../../adapters/index.ts';
import { GraftError } from '../../base/index.ts';
import { tokenizerFilesOf } from '../../data/index.ts';
import { requireNew, resolveModel } from '../../io/index.ts';
import { loadModel, saveModel } from '../../models/index.ts';
import { type Model, outputOf, type PackedTokens, packImages, packTokens } from '../../nn/index.ts';
import { noGrad, ops, scope } from '../../tensor/index.ts';

export interface MergeArgs {
  readonly model: string;
  readonly adapter: string;
  readonly out: string;
  readonly dtype?: 'float32' | 'bfloat16' | 'float16';
  /** How the merged model is to be held, and how the base is held under the adapter: what packing takes away shows in the drift. */
  readonly quantize?: 'none' | 'int8' | 'nf4';
}

/** How far the outputs of two models are apart, over rows that both saw. */
export interface Drift {
  readonly tokens: number;
  readonly maxDrift: number;
  readonly meanDrift: number;
  /** Predictions, and those among them whose most likely token or class became another. */
  readonly predictions: number;
  readonly changed: number;
}

const rows = 4;
const rowLength = 32;

/**
 * Folds the adapter in, writes the model with dense weights, and reports how far what was written, held as `quantize` says, is from
 * base and adapter apart: the rounding of the file and of packing the sum anew shows too.
 */
export async function mergeJob(args: MergeArgs): Promise<Drift & { readonly out: string }> {
  requireNew(args.out);
  const { quantize = 'none', dtype = 'float32' } = args;
  const path = await resolveModel(args.model);
  using model = loadModel(path, { quantize, ...taskOfAdapter(args.adapter) });
  using adapter = loadAdapter(model, args.adapter);
  if (!adapter.merge) {
    const { method, unmergeable } = adapter.parts.find((part) => !part.merge)!;
    const why = unmergeable ? `this ${method} adapter cannot be folded into the weights: ${unmergeable}` : undefined;
    throw new GraftError('usage', why ?? `a ${method} adapter cannot be folded into the weights`, {
      place: args.adapter,
      hint: 'Leave it beside the base: every command takes it with --adapter',
    });
  }
  const apart = outputs(model);
  adapter.merge();
  saveModel(model, args.out, path, dtype, tokenizerFilesOf(path));
  adapter.unmerge!();
  using written = loadModel(args.out, { quantize });
  return { out: args.out, ...driftOf(outputs(written), apart) };
}

interface Outputs {
  readonly tokens: number;
  /** Of one prediction. */
  readonly width: number;
  readonly values: Float32Array;
}

function driftOf(merged: Outputs, apart: Outputs): Drift {
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

/** What the model says of some rows that follow from its vocabulary or image size alone. */
function outputs(model: Model): Outputs {
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
