export { LinearWrapper, type Table, TableWrapper } from './layer-wrappers.ts';
export { normalizedWeights } from './mean-weights.ts';
export type { Adapter, AttachContext, Method, SavableAdapter, SavedAdapter, Written } from './method.ts';
export { ParameterInit, trainable } from './parameter-init.ts';
export {
  byPattern,
  type Candidate,
  candidatesOf,
  patternFits,
  savedTargets,
  selectTargets,
  type TargetConfig,
} from './targets.ts';
export { saveModules, type TrainedCopies, trainBiases } from './trained-copies.ts';
export {
  type Fold,
  type LayerWeight,
  layerUnder,
  ownLayerWeight,
  ownWeight,
  type Switch,
  type Wrapper,
  wrappedAdapter,
} from './wrappers.ts';
