import { attachSettings, settingsOf } from '../../adapters/index.ts';
import { requireNew, resolveModel } from '../../io/index.ts';
import { type ExportChoice, exportChoice, loadModel } from '../../models/index.ts';
import type { Activation } from '../../quant/index.ts';
import { releaseResidents } from '../resident.ts';
import { type Drift, driftOf, outputs } from './drift.ts';
import { activationOf, prepareWriting, type WritingContext, type WrittenModel } from './write-model.ts';

/** How a model is quantised, and where the result goes. */
export interface QuantizeSettings extends ExportChoice {
  /** New .gguf file for a format of GGUF, new directory for integers. */
  readonly out: string;
  /** Of what is not quantised, in a directory. Default: float32. */
  readonly dtype?: 'float32' | 'bfloat16' | 'float16' | undefined;
}

/** The quantised model, and how far its outputs are from those of the model. */
export type QuantizeResult = Drift & WrittenModel;

/**
 * Writes a model with its weights rounded to a format, without training, and reports what that changes. Weights that the file
 * has in the format already are copied.
 */
export async function quantizeFiles(
  { model: id, out, dtype = 'float32', ...format }: QuantizeSettings & { readonly model: string },
  context: WritingContext = { throwIfStopped() {}, emit() {} },
): Promise<QuantizeResult> {
  requireNew(out);
  const choice = exportChoice({ out, dtype, ...format });
  releaseResidents();
  const path = await resolveModel(id);
  const load = (from: string, activation?: Activation) =>
    loadModel(from, { quantize: 'keep', activation, progress: () => context.throwIfStopped() });
  using model = load(path);
  // A model that was trained to be rounded says how.
  using settings = attachSettings(model, path);
  const rounding = (on: boolean) => {
    for (const part of settings ? settingsOf(settings.parts) : []) part.enabled = on;
  };
  rounding(false);
  const trained = settings?.roundings;
  const write = prepareWriting(model, { path, out, dtype, choice, trained });
  rounding(true);
  const before = outputs(model);
  rounding(false);
  const written = write(context);
  using quantised = load(out, activationOf({ choice, trained }));
  return { ...driftOf(outputs(quantised), before), ...written };
}
