import { headFits, loadAdapter, savedAdapters } from '../adapters/index.ts';
import { GraftError } from '../base/index.ts';
import { tokenizerOf } from '../data/index.ts';
import type { ScratchFile } from '../io/index.ts';
import {
  type AttachedAdapter,
  attachMethods,
  attachOrder,
  isSettings,
  type Method,
  methods,
} from '../methods/index.ts';
import type { Model } from '../nn/index.ts';
import { createOptimizer, type Optimizer } from '../optim/index.ts';
import { learningRates, type TrainedModel } from './learning-rates.ts';
import type { Recipe } from './recipe.ts';

/** Whether training continues with the head of the adapter that a recipe begins from; tasks that share an adapter begin with new heads. */
export const keepsHead = (model: Model, { adapter, tasks }: Recipe): boolean =>
  adapter !== undefined && !tasks && headFits(model, adapter);

/**
 * Attaches a recipe's methods to the model, or the adapter that it begins from.
 * @param shapesOnly the parameters' values do not matter
 * @throws GraftError as `attachMethods` and `loadAdapter` do
 */
export function attach(model: Model, modelPath: string, recipe: Recipe, shapesOnly: boolean): AttachedAdapter {
  const choices = attachOrder([recipe.method].flat());
  if (!recipe.adapter) {
    const encode = (text: string) => [...tokenizerOf(modelPath).encode(text)];
    return attachMethods(model, choices, recipe.train.seed, {
      ...savedAdapters(model),
      encode,
      loading: shapesOnly,
      shapesOnly,
    });
  }
  // An adapter of another task is loaded under this task's head.
  const training = choices.map(({ type, ...fields }) => {
    const trainingOnly = (methods[type] as Method<unknown>).trainingOnly ?? [];
    return Object.fromEntries(Object.entries(fields).filter(([field]) => trainingOnly.includes(field)));
  });
  const head = keepsHead(model, recipe) ? 'file' : 'own';
  const adapter = loadAdapter(model, recipe.adapter, head, training, choices.filter(isSettings));
  const wanted = choices.map(({ type }) => type).join(' + ');
  if (adapter.method === wanted) return adapter;
  adapter.detach();
  throw new GraftError(
    'mismatch',
    `the recipe's method is ${wanted}, but the adapter to begin from is ${adapter.method}`,
    { place: recipe.adapter, hint: 'Give that method in the recipe, or begin from another adapter' },
  );
}

/**
 * The recipe's optimizer with the learning rates of each parameter; state that the method keeps between steps is saved with its own.
 * @param file where its state is instead of in memory
 */
export function optimizerFor(
  trained: TrainedModel,
  { train }: Recipe,
  updated = trained.parameters,
  file?: ScratchFile,
): Optimizer {
  const { rateOf, inBlock } = learningRates(trained, train);
  const rateFactor = (key: string) => rateOf(key) / train.lr;
  const optimizer = createOptimizer(train.optimizer, updated, {
    rateFactor,
    inBlock,
    trained: trained.parameters,
    file,
  });
  return {
    ...optimizer,
    get state() {
      return new Map([...optimizer.state, ...(trained.adapter.state ?? [])]);
    },
  };
}
