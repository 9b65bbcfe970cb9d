/**
 * Graft's library: fine-tuning, evaluation and generation in an engine thread.
 *
 * Most programs need `Session` only. `graft-llm/engine` has the parts below it, for programs that run the engine in their own
 * thread: models, methods, optimizers, tensors.
 */
import './node-version.ts';

export {
  type AdapterFormat,
  adapterFormats,
  convertAdapter,
  formatOf,
  readAdapterConfig,
} from './adapters/index.ts';
export {
  type CauseJson,
  type ErrorDetails,
  type ErrorJson,
  type ErrorKind,
  errorKinds,
  GraftError,
  type OtherErrorJson,
} from './base/index.ts';
export {
  type Comparison,
  type Contestant,
  type Failure,
  type Outcome,
  page as comparisonPage,
  type Results,
  readComparison,
  readResults,
  writeResults,
} from './compare/index.ts';
export {
  type Format,
  formatNames,
  loadTokenizer,
  type Message,
  type RowInput,
  type RowReport,
  type RowSource,
  type RowStream,
  type TextStream,
  type Tokenizer,
  tokenizerOf,
} from './data/index.ts';
export { launchEnvironment, type RankPlacement } from './distributed/index.ts';
export { engineStatus, type Gpu, type LibTorch, type Processor, processor } from './engine/index.ts';
export type { SamplingOptions } from './generate/index.ts';
export { type DownloadProgress, type ResolveOptions, resolveModel } from './io/index.ts';
export type { Combination, MethodChoice } from './methods/index.ts';
export {
  type ExportChoice,
  type ExportFormat,
  exportFormats,
  type FloatFormat,
  type Quantize,
} from './models/index.ts';
export type { ModelPart, Precision, TaskName } from './nn/index.ts';
export type { OptimizerChoice } from './optim/index.ts';
export type { BlockFormat, IntegerFormat, WeightFormat } from './quant/index.ts';
export {
  type Abortable,
  type Classification,
  type ClassifyResult,
  type CombineResult,
  type CombineSettings,
  type DoctorResult,
  type Drift,
  type EvaluateResult,
  type Fit,
  type GenerateResult,
  type GenerateSettings,
  type Identity,
  type IdRows,
  type LaunchOptions,
  type LoadedModel,
  type Logits,
  launch,
  type MemoryChoice,
  type MemoryPlan,
  type MergeCheckpointResult,
  type MergeCheckpointSettings,
  type MergeResult,
  type MergeSettings,
  type ModelInfo,
  type ModelSettings,
  type Prediction,
  type PredictResult,
  type Progress,
  type Prompt,
  type QuantizeResult,
  type QuantizeSettings,
  type RowsOptions,
  type Running,
  Session,
  type SessionOptions,
  type TrainOptions,
  type UseOptions,
  type WrittenModel,
} from './session/index.ts';
export type { Confusion, Metric } from './tasks/index.ts';
export {
  type AdafactorInput,
  type AdalomoInput,
  type AdaloraInput,
  type Adamw8bitInput,
  type AdamwInput,
  type BottleneckInput,
  type ClusterPlan,
  type CommonInput,
  type DataInput,
  type EvalInput,
  type FullInput,
  type FusionInput,
  type GaloreInput,
  type Ia3Input,
  type LayerwiseInput,
  type LionInput,
  type LomoInput,
  type LoraInput,
  type MethodInput,
  type MultitaskPromptInput,
  type OneTaskRecipe,
  type OptimizerInput,
  type PlanOptions,
  type PrefixInput,
  type PromptInput,
  type PTuningInput,
  parseRecipe,
  type QatInput,
  type RankReport,
  type RanksPlan,
  type Recipe,
  type RecipeInput,
  type RunInput,
  type RunMemory,
  type RunOptions,
  readRecipe,
  type SavedResult,
  type SeveralTasksRecipe,
  type SgdInput,
  type Stage,
  type StagePlan,
  type TaskInput,
  type TaskResult,
  type TrainEvent,
  type TrainInput,
  type TrainResult,
  type WeightedTaskInput,
} from './train/index.ts';
