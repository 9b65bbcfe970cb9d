export { adapterIn, isAdapter } from './adapter-dir.ts';
export { isAdapterHub } from './adapterhub/index.ts';
export { averageAdapters } from './average.ts';
export { type CombineOptions, combineAdapters } from './combine.ts';
export { type AdapterFormat, adapterFormats, convertAdapter, formatOf } from './convert.ts';
export { type DataSettings, dataSettingsOf, savedDataSettings } from './data-settings.ts';
export { isHeadKey } from './family-names.ts';
export {
  baseOfAdapter,
  headFits,
  loadAdapter,
  readAdapterConfig,
  savedAdapters,
  storedTensors,
  taskNumberOf,
  taskOfAdapter,
} from './load.ts';
export { type CardFacts, writeModelCard } from './model-card.ts';
export { loadingResident, loadResident, type ResidentAdapter, stepsWithoutValues } from './resident.ts';
export { type SaveOptions, saveAdapter } from './save.ts';
export { areSaved, attachSettings, settingNames, settingsOf, writeSettings } from './settings.ts';
