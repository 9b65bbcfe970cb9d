export { isGgufAdapter } from './file.ts';
export { ggufLayout } from './layout.ts';
export { ggufUpdates } from './updates.ts';
