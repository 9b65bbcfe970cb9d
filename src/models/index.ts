export type { AdapterHubNames, Family } from './family.ts';
export { headOf, loadModel, loadModels, openModel } from './load.ts';
export { formatIds, readTensor } from './reader.ts';
export { families } from './registry.ts';
export { saveModel } from './save.ts';
export type { HeadOptions, LoadOptions, Quantize } from './stored-weights.ts';
export { heldBytes } from './weight-memory.ts';
