export { KvCache } from './cache.ts';
export { type AttentionRows, composite, fused, type GateActivation, type Kernels } from './kernels.ts';
export { Embedding, Linear, type LinearLayer, RmsNorm } from './layers.ts';
export { crossEntropyOfLogits } from './losses.ts';
export type { Model, PackedTokens } from './model.ts';
export {
  Module,
  moduleAt,
  namedModules,
  namedTensors,
  replaceModule,
  replaceUnwrapped,
  tensorBytes,
  unwrapped,
} from './module.ts';
export { packTokens } from './packed.ts';
export { type RopeScaling, RopeTable, ropeFrequencies } from './rope.ts';
export type { Sites } from './sites.ts';
export type { Weights } from './weights.ts';
