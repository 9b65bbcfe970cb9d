export { peftLayout } from './layout.ts';
export { openPeftWeights, requireUnchangedBase } from './read-config.ts';
export { keyPrefix } from './tables.ts';
export { peftUpdates } from './updates.ts';
