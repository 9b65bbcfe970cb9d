export { KvCache } from './cache.ts';
export { type AttentionRows, composite, fused, type GateActivation, type Kernels } from './kernels.ts';
export { Embedding, Linear, RmsNorm } from './layers.ts';
export type { Model, PackedTokens } from './model.ts';
export { Module, moduleAt, namedModules, namedTensors, replaceModule } from './module.ts';
export { packTokens } from './packed.ts';
export { type RopeScaling, RopeTable, ropeFrequencies } from './rope.ts';
export type { Sites } from './sites.ts';
export type { Weights } from './weights.ts';
