export { activationNames, activationOf } from './activations.ts';
export type { AdapterBanks } from './adapter-banks.ts';
export {
  areBlocksGated,
  attend,
  blocksOf,
  Dense,
  type Gates,
  headDimOf,
  type Pass,
  postNormBlock,
  preNormBlock,
  selfAttention,
  useGates,
  useGradientCheckpointing,
} from './blocks.ts';
export { composite } from './composite.ts';
export { kernelsOn, kernelsText } from './device-kernels.ts';
export { fakeQuantize, fakeQuantizeInputs, fakeQuantizeTokens, withRoundedInputs } from './fake-quantize.ts';
export { forwardPass } from './forward-pass.ts';
export { fused } from './fused.ts';
export type {
  AttentionRows,
  BottleneckRun,
  FrozenWeight,
  GateActivation,
  Kernels,
  LowRankRun,
  LowRankUpdate,
  Rounding,
  RowRange,
  RunActivation,
  ScaledRun,
} from './kernels.ts';
export type { KeyValueSource, Prefix } from './key-values.ts';
export { type CachedRows, type KeyValues, KvPool, type KvShape } from './kv-pool.ts';
export { Embedding, forwardAll, LayerNorm, Linear, type LinearLayer, PatchProjection, RmsNorm } from './layers.ts';
export { crossEntropyOfLogits } from './losses.ts';
export { type Model, outputOf } from './model.ts';
export { layerNorm, type ModelWeights, rmsNorm } from './model-weights.ts';
export {
  heldTensors,
  Module,
  moduleAt,
  namedModules,
  namedTensors,
  replaceModule,
  replaceUnwrapped,
  tensorBytes,
  unwrapped,
} from './module.ts';
export {
  type ImageShape,
  idsAndPositions,
  type PackedTokens,
  packImages,
  packTokens,
  requirePositions,
} from './packed.ts';
export { type ModelPart, modelParts, partsByKey } from './parts.ts';
export { type BlockInput, type Port, Ports, type SublayerOutput } from './ports.ts';
export {
  bestPrecision,
  denseType,
  type Precision,
  precisionOfProcessor,
  precisions,
  usePrecision,
  useRowWiseProducts,
} from './precision.ts';
export type { Prompt } from './prompts.ts';
export {
  type Llama3Scaling,
  llama3Frequency,
  type Rope,
  type RopeFields,
  RopeTable,
  ropeOf,
  ropeScalingOf,
} from './rope.ts';
export { type Run, runsOf } from './runs.ts';
export { headsOf, type Sites } from './sites.ts';
export {
  firstTokens,
  lastTokensBeforePadding,
  type Pooling,
  poolings,
  poolRows,
  requireHead,
  type TaskHead,
  type TaskName,
  taskNames,
} from './tasks.ts';
