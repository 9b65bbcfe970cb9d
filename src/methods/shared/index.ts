export { LinearWrapper, type Table, TableWrapper } from './layer-wrappers.ts';
export { sharesOf } from './mean-weights.ts';
export type { Adapter, Inside, Method, SavedAdapter, Tools } from './method.ts';
export { Draws } from './parameter-init.ts';
export {
  byPattern,
  type Candidate,
  candidatesOf,
  patternFits,
  savedTargets,
  selectTargets,
  type TargetConfig,
} from './targets.ts';
export { type Copies, saveModules, trainBiases } from './trained-copies.ts';
export {
  type Fold,
  type Held,
  layerUnder,
  ownHeld,
  ownWeight,
  type Switch,
  type Wrapper,
  wrappedAdapter,
} from './wrappers.ts';
