export type { Family } from './family.ts';
export { formatIds, type LoadOptions, loadModel, openModel, type Quantize } from './load.ts';
export { families } from './registry.ts';
