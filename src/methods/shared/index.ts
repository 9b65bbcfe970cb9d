export { type Candidate, candidatesOf } from './candidates.ts';
export type { CopiedBias, CopiedModule, TrainedCopies } from './copies.ts';
export { type Fold, fold, type LayerWeight, ownLayerWeight, ownWeight, unfold } from './folds.ts';
export type { LayerPolicy, PartState, PolicyRun } from './layer-policy.ts';
export { LinearWrapper, type Table, TableWrapper } from './layer-wrappers.ts';
export { wrapLinearLayers } from './linear-layers.ts';
export { normalizedWeights } from './mean-weights.ts';
export type {
  Adapter,
  AttachContext,
  Method,
  SavableAdapter,
  SavedAdapter,
  Written,
} from './method.ts';
export { identity, ParameterInit, trainable } from './parameter-init.ts';
export {
  type AdapterPlacement,
  type PlacedPort,
  type PlainBottleneck,
  placed,
  placementOf,
  type Sublayer,
} from './placement.ts';
export { portAdapter } from './port-adapter.ts';
export type { RowUpdate } from './row-update.ts';
export { readSaved } from './saved-adapter.ts';
export { saveModules } from './saved-modules.ts';
export { targetFields } from './target-fields.ts';
export {
  byPattern,
  matchesPattern,
  savedTargets,
  selectTargets,
  type TargetConfig,
  unmatchedTargets,
} from './targets.ts';
export { trainedCopies } from './trained-copies.ts';
export { layerUnder, type Switch, unwrap, type Wrapper, wrappedAdapter } from './wrappers.ts';
