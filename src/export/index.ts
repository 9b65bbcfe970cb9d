export {
  headFits,
  isAdapter,
  loadAdapter,
  readAdapterConfig,
  saveAdapter,
  savedAdapters,
  storedTensors,
  taskNumberOf,
  taskOfAdapter,
} from './adapter.ts';
export { isAdapterHub } from './adapterhub.ts';
export { averageAdapters } from './average.ts';
export { type CombineOptions, combineAdapters } from './combine.ts';
export { type AdapterFormat, adapterFormats, convertAdapter, formatOf } from './convert.ts';
export { saveModel } from './model.ts';
export type { SaveOptions } from './peft.ts';
