export { type LoadSettings, Session, type SessionOptions, type TrainOptions } from './client.ts';
export type {
  Classification,
  ClassifyResult,
  CombineResult,
  CombineSettings,
  DoctorResult,
  Drift,
  EvaluateResult,
  Fit,
  GenerateResult,
  GenerateSettings,
  Identity,
  IdRows,
  Logits,
  MemoryChoice,
  MemoryPlan,
  MergeCheckpointResult,
  MergeCheckpointSettings,
  MergeResult,
  MergeSettings,
  ModelSettings,
  Prediction,
  PredictResult,
  Progress,
  Prompt,
  QuantizeResult,
  QuantizeSettings,
  RowsOptions,
  UseOptions,
  WrittenModel,
} from './jobs/index.ts';
export { type LaunchOptions, launch, launcherVariable } from './launch/index.ts';
export { LoadedModel } from './model.ts';
export type { Abortable } from './protocol.ts';
export type { ModelInfo } from './resident.ts';
export type { Running } from './running.ts';
export type { Serving } from './serving.ts';
export type { AddAdapterOptions, ServeOptions, ServingStats } from './serving-types.ts';
