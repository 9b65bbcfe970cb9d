export { keyPrefix, openPeftWeights, peftLayout } from './layout.ts';
export { requireUnchangedBase } from './read-config.ts';
export { peftUpdates } from './updates.ts';
