export { saveModel } from './model.ts';
export { loadAdapter, readAdapterConfig, type SaveOptions, saveAdapter } from './peft.ts';
