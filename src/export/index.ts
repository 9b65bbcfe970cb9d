export { loadAdapter, readAdapterConfig, type SaveOptions, saveAdapter } from './peft.ts';
export { saveModel } from './model.ts';
