import { loadAdapter, taskOfAdapter } from '../../adapters/index.ts';
import { GraftError } from '../../base/index.ts';
import { tokenizerFilesOf } from '../../data/index.ts';
import { requireNew, resolveModel } from '../../io/index.ts';
import { loadModel, saveModel } from '../../models/index.ts';
import { type Model, outputOf, type PackedTokens, packImages, packTokens } from '../../nn/index.ts';
import type { Quantize } from '../../quant/index.ts';
import { noGrad, ops, scope } from '../../tensor/index.ts';
import type { JobContext } from '../job-context.ts';
import { releaseResidents, residentOf } from '../resident.ts';

/** How an adapter is merged, and where the result goes. */
export interface MergeSettings {
  /** Name of an adapter of the model, or a directory. */
  readonly adapter: string;
  /** New directory for the merged model. */
  readonly out: string;
  /** Of the weights that are written. Default: float32. */
  readonly dtype?: 'float32' | 'bfloat16' | 'float16' | undefined;
  /** How the merged model will be held, and how the base is held under the adapter: the drift shows what quantising loses. Default: none. */
  readonly quantize?: Exclude<Quantize, 'keep'> | undefined;
}

/** How far the outputs of the merged model are from those of base and adapter, over rows that both read. */
export interface MergeResult {
  /** Directory of the merged model. */
  readonly out: string;
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
  /** Files and folders of the base that are not copied: its model card, and folders that are not the model's. */
  readonly notCopied: readonly string[];
}

const rows = 4;
const rowLength = 32;

export type MergeArgs = MergeSettings & { readonly modelId: number };

/**
 * Adds the adapter to the weights, writes the model with dense weights, and reports how far the model that was written, held as
 * `quantize` says, is from base and adapter: rounding in the file and quantising the sum both show.
 */
export function merge({ modelId, adapter, ...settings }: MergeArgs, context: JobContext): Promise<MergeResult> {
  const resident = residentOf(modelId);
  return mergeFiles({ model: resident.path, adapter: resident.dirOf(adapter), ...settings }, context);
}

/** As `merge`, of a model and an adapter directory. */
export async function mergeFiles(
  { model: id, adapter: dir, out, dtype = 'float32', quantize = 'none' }: MergeSettings & { readonly model: string },
  { throwIfStopped }: Pick<JobContext, 'throwIfStopped'> = { throwIfStopped() {} },
): Promise<MergeResult> {
  requireNew(out);
  releaseResidents();
  const path = await resolveModel(id);
  using model = loadModel(path, { quantize, ...taskOfAdapter(dir) });
  using adapter = loadAdapter(model, dir);
  if (!adapter.merge) {
    const { method, unmergeable } = adapter.parts.find((part) => !part.merge)!;
    throw new GraftError('usage', `this ${method} adapter cannot be merged${unmergeable ? `: ${unmergeable}` : ''}`, {
      place: dir,
      hint: 'Use it beside the base: every command takes it with --adapter',
    });
  }
  throwIfStopped();
  const apart = outputs(model);
  adapter.merge();
  const notCopied = saveModel(model, out, path, dtype, tokenizerFilesOf(path));
  adapter.unmerge!();
  using written = loadModel(out, { quantize });
  return { out, ...driftOf(outputs(written), apart), notCopied };
}

interface Outputs {
  readonly tokens: number;
  /** Of one prediction. */
  readonly width: number;
  readonly values: Float32Array;
}

function driftOf(merged: Outputs, apart: Outputs): Omit<MergeResult, 'out' | 'notCopied'> {
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
