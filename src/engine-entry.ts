import './node-version.ts';
import { type AttachedAdapter, attach as attachChoices } from './methods/index.ts';
import type { Model } from './nn/index.ts';
import type { MethodInput } from './train/index.ts';

/**
 * The engine in this thread, published as `graft-llm/engine`: for training loops and tools of one's own. Await `startEngine()`
 * first; everything after it is synchronous and blocks the thread.
 */
export {
  averageAdapters,
  type CombineOptions,
  combineAdapters,
  loadAdapter,
  loadingResident,
  loadResident,
  type ResidentAdapter,
  readAdapterConfig,
  type SaveOptions,
  saveAdapter,
} from './adapters/index.ts';
export {
  type CauseJson,
  type ErrorDetails,
  type ErrorJson,
  type ErrorKind,
  errorKinds,
  GraftError,
  type OtherErrorJson,
  type Steps,
} from './base/index.ts';
export {
  ChatTemplate,
  loadTokenizer,
  type Message,
  type RawRecord,
  type ReadOptions,
  type RenderOptions,
  type Row,
  readRecords,
  type TextStream,
  type Tokenizer,
  tokenizerOf,
} from './data/index.ts';
export {
  type Group,
  type JoinedGroup,
  joinGroup,
  launchEnvironment,
  oneProcess,
  type RankPlacement,
  type Traffic,
} from './distributed/index.ts';
export {
  type Cuda,
  type Engine,
  engineStatus,
  type Gpu,
  type LibTorch,
  type Processor,
  processor,
  type StartOptions,
  startEngine,
} from './engine/index.ts';
export {
  type EndReason,
  type GenerateOptions,
  type GenerateSummary,
  generate,
  generateText,
  type SamplingOptions,
  scoreChoices,
  type TextOptions,
  type TextResult,
} from './generate/index.ts';
export {
  type DownloadProgress,
  type MetadataValue,
  type NumberArray,
  openGguf,
  openSafetensors,
  type ResolveOptions,
  resolveModel,
  type TensorToWrite,
  type WeightEntry,
  type WeightSource,
  writeSafetensors,
} from './io/index.ts';
export {
  type Adapter,
  type AttachedAdapter,
  Banks,
  type Combination,
  type FactorType,
  type Method,
  type MethodChoice,
  type MixedAdapter,
  methods,
} from './methods/index.ts';
export {
  type HeadOptions,
  type LoadOptions,
  loadModel,
  openModel,
  type Quantize,
  SharedWeights,
  saveModel,
} from './models/index.ts';
export {
  type AdapterBanks,
  type Gates,
  type Model,
  type ModelPart,
  type PackedTokens,
  type Pooling,
  packTokens,
  type TaskHead,
  type TaskName,
} from './nn/index.ts';
export {
  type BackwardUpdates,
  clipGradients,
  createOptimizer,
  type Optimizer,
  type OptimizerChoice,
  type Placement,
  type ScheduleConfig,
  scheduleFactor,
} from './optim/index.ts';
export type { Activation } from './quant/index.ts';
export {
  type Confusion,
  type EvalResult,
  type MeasureOptions,
  type Metric,
  measure,
  type Task,
  type TaskMetrics,
  type TaskOptions,
  taskOf,
  wilson,
} from './tasks/index.ts';
export {
  type Device,
  type DType,
  type Gate,
  Generator,
  manualSeed,
  noGrad,
  ops,
  type Scope,
  scope,
  scoped,
  Tensor,
  type TypedArray,
} from './tensor/index.ts';
export {
  type ActiveLayers,
  type ActiveLayersInput,
  type ActiveParts,
  type AdaloraInput,
  activeLayers,
  type BottleneckInput,
  batchLoss,
  type FullInput,
  type FusionInput,
  type Ia3Input,
  type LayerwiseInput,
  type LoraInput,
  type MethodInput,
  type MicroBatch,
  type MultitaskPromptInput,
  type PartOfParameter,
  type PrefixInput,
  type PromptInput,
  type PTuningInput,
  type QatInput,
  type Sharding,
  type StepInput,
  type StepResult,
  shardingOf,
  trainStep,
} from './train/index.ts';

/**
 * Puts a method on the model, or several in their order, with a trained copy of the task's head where it has one.
 * @param method fields as in a recipe (docs/recipe.md)
 * @throws GraftError 'usage' for wrong fields, and where the model does not support the method; the model is then as before
 */
export const attach: (
  model: Model,
  method: MethodInput | readonly MethodInput[],
  options?: { readonly seed?: number },
) => AttachedAdapter = attachChoices;
