export { adalora } from './adalora.ts';
export {
  type Combination,
  type Combining,
  combinations,
  combinedRank,
  combineUpdates,
  draws,
  type WeightedUpdate,
} from './combine-updates.ts';
export { loraConfig } from './config.ts';
export { alternate } from './decompose.ts';
export { lora } from './lora.ts';
