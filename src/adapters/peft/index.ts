export { peftUpdates } from './convert.ts';
export {
  entryOf,
  fill,
  fillPeft,
  headSizeOf,
  readPeftConfig,
  requireOwnBase,
  type SaveOptions,
  storedByPeft,
  taskNameOf,
  writePeft,
} from './files.ts';
