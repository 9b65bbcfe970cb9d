import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { adapterIn, loadAdapter, taskOfAdapter } from '../../adapters/index.ts';
import { GraftError } from '../../base/index.ts';
import { requireNew, resolveModel } from '../../io/index.ts';
import { type ExportChoice, type ExportFormat, exportChoice, loadModel, vocabSizeOf } from '../../models/index.ts';
import type { Quantize } from '../../quant/index.ts';
import type { JobContext } from '../job-context.ts';
import { releaseResidents, residentOf, resizedNote } from '../resident.ts';
import { type Drift, driftOf, outputs } from './drift.ts';
import type { Progress } from './rows.ts';
import { activationOf, prepareWriting, type WritingContext, type WrittenModel } from './write-model.ts';

/** How an adapter is merged, and where the result goes. */
export interface MergeSettings extends Pick<ExportChoice, 'groupSize' | 'embedding'> {
  /** Format of the linear layers of the blocks, of which the merged sum is rounded once. Default: `dtype`. */
  readonly to?: ExportFormat | undefined;
  /** Name of an adapter of the model, or a directory. */
  readonly adapter: string;
  /** New directory for the merged model, or with a format of GGUF a new .gguf file. */
  readonly out: string;
  /** Of the weights that are written, except those in a format of `to`. Default: float32. */
  readonly dtype?: 'float32' | 'bfloat16' | 'float16' | undefined;
  /** How the merged model will be held, and how the base is held under the adapter: the drift shows what quantising loses. Default: none. */
  readonly quantize?: Exclude<Quantize, 'keep'> | undefined;
}

/** The merged model that was written, and how far its outputs are from those of base and adapter. */
export type MergeResult = Drift & WrittenModel;

export type MergeArgs = MergeSettings & { readonly modelId: number };

/**
 * Adds the adapter to the weights, writes the model with dense weights or quantised once, and reports how far the model that was written, held as
 * `quantize` says, is from base and adapter: rounding in the file and quantising the sum both show.
 */
export function merge(
  { modelId, adapter, ...settings }: MergeArgs,
  context: JobContext<Progress>,
): Promise<MergeResult> {
  const resident = residentOf(modelId);
  return mergeFiles({ model: resident.path, adapter: resident.dirOf(adapter), ...settings }, context);
}

/** As `merge`, of a model and an adapter directory. */
export async function mergeFiles(
  {
    model: id,
    adapter: adapterPath,
    out,
    dtype = 'float32',
    quantize = 'none',
    ...format
  }: MergeSettings & { readonly model: string },
  context: WritingContext = { throwIfStopped() {}, emit() {} },
): Promise<MergeResult> {
  requireNew(out);
  const dir = adapterIn(adapterPath);
  const choice = exportChoice({ out, dtype, ...format });
  if (choice && quantize !== 'none') {
    throw new GraftError('usage', 'the merged weights are quantised once: to is for the file, quantize for memory', {
      hint: 'Give one of to and quantize',
    });
  }
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
  const isResized = model.vocabSize !== vocabSizeOf(path);
  const tokenizerPath = isResized && existsSync(join(dir, 'tokenizer.json')) ? dir : path;
  const trained = adapter.roundings;
  const writing = prepareWriting(model, { path, tokenizerPath, out, dtype, choice, trained });
  context.throwIfStopped();
  const apart = outputs(model);
  adapter.merge();
  const written = writing(context);
  adapter.unmerge!();
  using merged = loadModel(out, {
    quantize: choice ? 'keep' : quantize,
    activation: activationOf({ choice, trained }),
  });
  const notes = isResized
    ? [...written.notes, resizedNote(vocabSizeOf(path), model.vocabSize, tokenizerPath !== path)]
    : written.notes;
  return { ...driftOf(outputs(merged), apart), ...written, notes };
}
