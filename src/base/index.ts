export {
  type CauseJson,
  type ErrorDetails,
  type ErrorJson,
  type ErrorKind,
  errorKinds,
  GraftError,
  type OtherErrorJson,
} from './errors.ts';
export { fileError, makeDirectory, nearestPath } from './files.ts';
export { isRunning, LOCK_NAME, lockDirectory, processStamp, waitForLock } from './lock.ts';
export { freeMemory } from './memory.ts';
export { nearest } from './nearest.ts';
export { cacheDir, packageRoot } from './paths.ts';
export { parseWith } from './schema.ts';
export { complete, type Steps } from './steps.ts';
export { fromWire, toWire } from './wire.ts';
