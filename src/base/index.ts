export { type ErrorDetails, type ErrorKind, GraftError } from './errors.ts';
export { fileError, makeDirectory, nearestPath } from './files.ts';
export { freeMemory } from './memory.ts';
export { nearest } from './nearest.ts';
export { cacheDir, packageRoot } from './paths.ts';
export { parseWith } from './schema.ts';
