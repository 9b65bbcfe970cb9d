export { type ReadOptions, readRecords, rowsInMemory } from './read.ts';
