export type { Family } from './family.ts';
export { formatIds, type LoadOptions, loadModel, openModel, type Quantize } from './load.ts';
export { heldBytes } from './memory.ts';
export { families } from './registry.ts';
