export type { Family } from './family.ts';
export { headOf, loadModel, loadModels, openModel } from './load.ts';
export { heldBytes } from './memory.ts';
export { families } from './registry.ts';
export { formatIds, type HeadOptions, type LoadOptions, type Quantize } from './weights.ts';
