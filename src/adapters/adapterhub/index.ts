export { adapterHubLayout, openAdapterHubWeights } from './layout.ts';
export { isAdapterHub } from './read-config.ts';
export { byFileKey, renamedKey } from './tensor-keys.ts';
export { adapterHubUpdates } from './updates.ts';
