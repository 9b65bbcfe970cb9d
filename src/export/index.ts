export { headFits, loadAdapter, readAdapterConfig, saveAdapter, savedAdapters, taskOfAdapter } from './adapter.ts';
export { saveModel } from './model.ts';
export type { SaveOptions } from './peft.ts';
