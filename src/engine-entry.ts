import { type AttachedAdapter, attach as attachChoices } from './methods/index.ts';
import type { Model } from './nn/index.ts';
import type { MethodInput } from './train/index.ts';

/**
 * The engine in this thread, published as `graft-llm/engine`: for training loops and tools of one's own. Await `startEngine()`
 * first; everything after it is synchronous and blocks the thread.
 */
export {
  averageAdapters,
  combineAdapters,
  loadAdapter,
  readAdapterConfig,
  saveAdapter,
} from './adapters/index.ts';
export { GraftError } from './base/index.ts';
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
export { type GenerateOptions, generate, generateText, scoreChoices } from './generate/index.ts';
export { openGguf, openSafetensors, resolveModel, writeSafetensors } from './io/index.ts';
export {
  type Adapter,
  type AttachedAdapter,
  type Method,
  methods,
} from './methods/index.ts';
export { type LoadOptions, loadModel, openModel, type Quantize, saveModel } from './models/index.ts';
export { type Model, type PackedTokens, packTokens } from './nn/index.ts';
export { type AdamWConfig, adamw, clipGradients, type Optimizer, scheduleFactor } from './optim/index.ts';
export { type EvalResult, type Metric, measure, type Task, taskOf, wilson } from './tasks/index.ts';
export { type DType, Generator, manualSeed, noGrad, ops, type Scope, scope, scoped, Tensor } from './tensor/index.ts';
export { batchLoss, type MethodInput, type StepResult, trainStep } from './train/index.ts';

/**
 * Puts a method on the model, or several in their order, with a trained copy of the task's head where it has one.
 * @param method fields as in a recipe (docs/recipe.md)
 * @throws GraftError 'usage' for wrong fields, and where the model does not support the method; the model is then as before
 */
export const attach: (
  model: Model,
  method: MethodInput | readonly MethodInput[],
  options?: { readonly seed?: number },
) => AttachedAdapter = attachChoices;
