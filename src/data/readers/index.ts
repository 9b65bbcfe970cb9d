export { type ReadOptions, readRecords, rowsInMemory } from './read.ts';
export { localPaths } from './sources.ts';
