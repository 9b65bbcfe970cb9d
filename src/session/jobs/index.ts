import { classify } from './classify.ts';
import { combine } from './combine.ts';
import { doctor } from './doctor.ts';
import { evaluate } from './evaluate.ts';
import { generate } from './generate.ts';
import { logits, writeLogits } from './logits.ts';
import { merge, mergeFiles } from './merge.ts';
import { mergeCheckpoint } from './merge-checkpoint.ts';
import { addAdapter, lendWeights, load, removeAdapter, takeBackWeights, unload } from './models.ts';
import { plan } from './plan.ts';
import { predict } from './predict.ts';
import { quantizeFiles } from './quantize.ts';
import { rowsPreview } from './rows-preview.ts';
import { closeServing, dropAdapter, serve, serveAdapter, servingStats, submit } from './serve.ts';
import { train } from './train.ts';

export type { Classification, ClassifyResult } from './classify.ts';
export type { CombineResult, CombineSettings } from './combine.ts';
export type { DoctorResult, Fit, MemoryPlan } from './doctor.ts';
export type { Drift } from './drift.ts';
export type { EvaluateResult } from './evaluate.ts';
export type { GenerateResult, GenerateSettings, Prompt } from './generate.ts';
export type { Identity } from './identity.ts';
export type { IdRows, Logits } from './logits.ts';
export type { MemoryChoice } from './memory-choices.ts';
export type { MergeResult, MergeSettings } from './merge.ts';
export type { MergeCheckpointResult, MergeCheckpointSettings } from './merge-checkpoint.ts';
export type { LentWeights, ModelSettings } from './models.ts';
export type { Prediction, PredictResult } from './predict.ts';
export type { QuantizeResult, QuantizeSettings } from './quantize.ts';
export type { Progress, RowsOptions, UseOptions } from './rows.ts';
export type { WrittenModel } from './write-model.ts';

/** What the engine thread does when it is asked, by name: (arguments, context) → result. */
export const jobs = {
  load,
  lendWeights,
  takeBackWeights,
  unload,
  addAdapter,
  removeAdapter,
  generate,
  classify,
  predict,
  evaluate,
  logits,
  writeLogits,
  merge,
  mergeFiles,
  mergeCheckpoint,
  quantizeFiles,
  combine,
  doctor,
  plan,
  rowsPreview,
  train,
  serve,
  submit,
  servingStats,
  serveAdapter,
  dropAdapter,
  closeServing,
};

/** Jobs that run beside others, and take turns with them where they use the engine. */
export const besideOthers: ReadonlySet<keyof typeof jobs> = new Set([
  'submit',
  'servingStats',
  'serveAdapter',
  'dropAdapter',
  'closeServing',
]);
