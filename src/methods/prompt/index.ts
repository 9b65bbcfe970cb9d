export { multitaskPrompt } from './multitask-prompt.ts';
export { pTuning } from './p-tuning.ts';
export { prefix } from './prefix.ts';
export { prompt } from './prompt.ts';
