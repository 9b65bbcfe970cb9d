export { adalora } from './adalora.ts';
export {
  type Combination,
  type CombineSettings,
  combinations,
  combinedRank,
  combineUpdates,
  dareMasks,
  type WeightedUpdate,
} from './combine-updates.ts';
export { loftq } from './decompose.ts';
export { lora } from './lora.ts';
