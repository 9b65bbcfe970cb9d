export { type Attached, attachMethods, type MethodChoice, trainHead } from './compose.ts';
export {
  type Combination,
  type Combining,
  combinations,
  combinedRank,
  combineUpdates,
  draws,
  lora,
  type WeightedUpdate,
} from './lora/index.ts';
export { methods } from './registry.ts';
export {
  type Adapter,
  byPattern,
  type Candidate,
  candidatesOf,
  type Inside,
  type Method,
  type SavedAdapter,
  selectTargets,
  sharesOf,
  type TargetConfig,
  type Tools,
} from './shared/index.ts';
