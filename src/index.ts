/**
 * Graft's library surface.
 *
 * Most programs need `Session` (an engine in a thread of its own) and recipes. What is below it, the engine in this
 * thread, is for those who build on it: `startEngine`, then models, methods, tensors.
 */

export {
  averageAdapters,
  combineAdapters,
  convertAdapter,
  formatOf,
  loadAdapter,
  readAdapterConfig,
  saveAdapter,
} from './adapters/index.ts';
export { type ErrorJson, type ErrorKind, GraftError } from './base/index.ts';
export { page as comparisonPage, type Results, readComparison, runComparison } from './compare/index.ts';
export {
  ChatTemplate,
  loadTokenizer,
  type Message,
  type Row,
  readRecords,
  type Tokenizer,
  tokenizerOf,
} from './data/index.ts';
export { engineStatus, processor, startEngine } from './engine/index.ts';
export { generate, generateText, scoreChoices } from './generate/index.ts';
export { openGguf, openSafetensors, resolveModel, writeSafetensors } from './io/index.ts';
export { type Adapter, type Method, methods } from './methods/index.ts';
export { type LoadOptions, loadModel, openModel, saveModel } from './models/index.ts';
export { type Model, packTokens } from './nn/index.ts';
export { adamw, clipGradients, scheduleFactor } from './optim/index.ts';
export { type LogEvent, Session } from './session/index.ts';
export { type Metric, measure, type Task, taskOf, wilson } from './tasks/index.ts';
export { type DType, manualSeed, noGrad, ops, scope, scoped, Tensor } from './tensor/index.ts';
export {
  parseRecipe,
  type Recipe,
  readRecipe,
  recipeSchema,
  type TrainEvent,
  type TrainResult,
} from './train/index.ts';
