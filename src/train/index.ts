export { type ActiveLayers, type ActiveLayersInput, type ActiveParts, activeLayers } from './active.ts';
export { optimizerFor } from './attach.ts';
export {
  type ActivationBytes,
  activationBytes,
  type BlockShape,
  bytesPerToken,
  shapeOf,
  tokenBudget,
} from './budget.ts';
export {
  type ClusterPlan,
  type Stage,
  type StagePlan,
  stages,
} from './cluster-plan.ts';
export { consolidate } from './consolidate.ts';
export { withBatchOf } from './deepspeed.ts';
export { explainedMeasurement } from './diverged.ts';
export type { SavedResult, TaskResult, TrainEvent } from './events.ts';
export { type LlamaShape, llamaShapes, tensorsOf } from './llama-shapes.ts';
export { type LargestBatch, planMemory, type RunMemory } from './memory-plan.ts';
export { examplesOf, numberedRows, type PlacedExample, rowMaker, taskNotes } from './plan.ts';
export { type PlanOptions, planForRanks, type RanksPlan } from './plan-for-ranks.ts';
export { type LengthBin, previewRows, type RowPiece, type RowPreview, type TaskPreview } from './preview.ts';
export type { RankReport } from './ranks.ts';
export { isParsed, parseRecipe, type Recipe, readRecipe, recipeSchema, severalSchema } from './recipe.ts';
export type {
  AdafactorInput,
  AdalomoInput,
  AdaloraInput,
  Adamw8bitInput,
  AdamwInput,
  BottleneckInput,
  CommonInput,
  DataInput,
  EvalInput,
  FullInput,
  FusionInput,
  GaloreInput,
  Ia3Input,
  LayerwiseInput,
  LionInput,
  LomoInput,
  LoraInput,
  MethodInput,
  MultitaskPromptInput,
  OneTaskRecipe,
  OptimizerInput,
  PrefixInput,
  PromptInput,
  PTuningInput,
  QatInput,
  RecipeInput,
  RunInput,
  SeveralTasksRecipe,
  SgdInput,
  TaskInput,
  TrainInput,
  WeightedTaskInput,
} from './recipe-input.gen.ts';
export type { TrainResult } from './report.ts';
export { type RunOptions, runTraining } from './run.ts';
export { gatheredSharding, type PartOfParameter, type Sharding, shardingOf } from './sharding.ts';
export { shareOut } from './shared-out.ts';
export { batchLoss, type MicroBatch, type StepInput, type StepResult, trainStep } from './step.ts';
export { openTaskModels } from './task-models.ts';
export { readLessons } from './task-runs.ts';
export { readYaml } from './yaml.ts';
