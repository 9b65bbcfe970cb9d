import { z } from 'zod';
import { GraftError, parseWith } from '../base/index.ts';
import type { Tensor } from '../tensor/index.ts';
import { adalomo } from './adalomo.ts';
import { adamw } from './adamw.ts';
import { lomo } from './lomo.ts';
import { makeOptimizer, type Optimizer, type OptimizerType } from './optimizer.ts';

/** Every optimizer by its name in recipes; a new one is one file and one line here. Recipes and documents derive from it. */
export const optimizers = { adamw, lomo, adalomo } as const;

const variants = Object.values(optimizers).map(({ name, config }) =>
  z
    .strictObject({
      type: z.literal(name).describe('Name of the optimizer.'),
      ...(config as unknown as z.ZodObject).shape,
    })
    .describe(config.description ?? ''),
);

/** The field `train.optimizer` of a recipe: a name and its settings. */
export const optimizerConfig = z.discriminatedUnion('type', variants as never);

/** An optimizer's name and its settings, as recipes give them. */
export type OptimizerChoice = { readonly type: string } & Readonly<Record<string, unknown>>;

/** Whether an optimizer updates in the backward pass. */
export const isInBackward = ({ type }: OptimizerChoice): boolean =>
  (optimizers as Record<string, Pick<OptimizerType<never>, 'inBackward'>>)[type]?.inBackward ?? false;

/**
 * Returns an optimizer of these parameters.
 * @param rateFactor the factor of the learning rate for the parameter of this key
 * @throws GraftError 'usage' for an unknown optimizer or setting
 */
export function createOptimizer(
  { type, ...settings }: OptimizerChoice,
  parameters: ReadonlyMap<string, Tensor>,
  rateFactor: (key: string) => number = () => 1,
): Optimizer {
  const found = (optimizers as Record<string, OptimizerType<{ weight_decay: number }>>)[type];
  if (!found) {
    throw new GraftError('usage', `there is no optimizer '${type}'`, {
      hint: `Those known: ${Object.keys(optimizers).join(', ')}`,
    });
  }
  const config = parseWith(found.config, settings, 'optimizer');
  return makeOptimizer(found, config, parameters, rateFactor);
}
