export { type ErrorDetails, type ErrorKind, GraftError } from './errors.ts';
export { nearest } from './nearest.ts';
export { parseWith } from './schema.ts';
export { cacheDir, packageRoot } from './paths.ts';
