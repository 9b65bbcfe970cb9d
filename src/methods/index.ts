export { Banks, type FactorType, type MixedAdapter } from './banks/index.ts';
export { attachOrder, isSettings, type MethodChoice, requireSavable, writtenBy } from './choice.ts';
export { type AttachedAdapter, attach, attachMethods, trainHead } from './compose.ts';
export {
  type Combination,
  type CombineSettings,
  combinations,
  combinedRank,
  combineUpdates,
  dareMasks,
  lora,
  type WeightedUpdate,
} from './lora/index.ts';
export { methods } from './registry.ts';
export {
  type Adapter,
  type AttachContext,
  byPattern,
  type Candidate,
  candidatesOf,
  type LayerPolicy,
  type Method,
  normalizedWeights,
  type SavableAdapter,
  type SavedAdapter,
  selectTargets,
  type TargetConfig,
} from './shared/index.ts';
