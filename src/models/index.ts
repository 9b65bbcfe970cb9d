export type { Family } from './family.ts';
export { headOf, loadModel, loadModels, openModel } from './load.ts';
export { heldBytes } from './memory.ts';
export { formatIds } from './reader.ts';
export { families } from './registry.ts';
export type { HeadOptions, LoadOptions, Quantize } from './weights.ts';
