export { isAdapter } from './adapter-dir.ts';
export { isAdapterHub } from './adapterhub/index.ts';
export { averageAdapters } from './average.ts';
export { type CombineOptions, combineAdapters } from './combine.ts';
export { type AdapterFormat, adapterFormats, convertAdapter, formatOf } from './convert.ts';
export { isHeadKey } from './family-names.ts';
export {
  headFits,
  loadAdapter,
  readAdapterConfig,
  savedAdapters,
  storedTensors,
  taskNumberOf,
  taskOfAdapter,
} from './load.ts';
export { loadingResident, loadResident, type ResidentAdapter } from './resident.ts';
export { type SaveOptions, saveAdapter } from './save.ts';
export { areSaved, attachSettings, settingNames, settingsOf, writeSettings } from './settings.ts';
