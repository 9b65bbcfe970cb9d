export {
  type Combination,
  type Combining,
  combinations,
  combinedRank,
  combineUpdates,
  draws,
  type WeightedUpdate,
} from './combine.ts';
export { type Attached, attachMethods, type MethodChoice, trainHead } from './compose.ts';
export { lora } from './lora.ts';
export type { Adapter, Inside, Method, SavedAdapter, Tools } from './method.ts';
export { methods } from './registry.ts';
export { sharesOf } from './shares.ts';
export { byPattern, type Candidate, candidatesOf, selectTargets, type TargetConfig } from './targets.ts';
