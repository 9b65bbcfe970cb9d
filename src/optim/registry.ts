import { z } from 'zod';
import { GraftError, parseWith } from '../base/index.ts';
import type { Tensor } from '../tensor/index.ts';
import { adafactor } from './adafactor.ts';
import { adalomo } from './adalomo.ts';
import { adamw } from './adamw.ts';
import { adamw8bit } from './adamw8bit.ts';
import { galore } from './galore.ts';
import { lion } from './lion.ts';
import { lomo } from './lomo.ts';
import { makeOptimizer, type Optimizer, type OptimizerType, type Placement } from './optimizer.ts';
import { sgd } from './sgd.ts';

/** Every optimizer by its name in recipes; a new one is one file and one line here. Recipes and documents derive from it. */
export const optimizers = { adamw, adamw8bit, sgd, lion, adafactor, galore, lomo, adalomo } as const;

const variants = Object.values(optimizers).map(({ name, config }) =>
  z
    .strictObject({
      type: z.literal(name).describe('Name of the optimizer.'),
      ...(config as unknown as z.ZodObject).shape,
    })
    // What the config demands of several settings together.
    .superRefine(({ type: _, ...settings }, context) => {
      for (const { path, message } of config.safeParse(settings).error?.issues ?? [])
        context.addIssue({ code: 'custom', path, message });
    })
    .describe(config.description ?? ''),
);

/** Returns the names of an optimizer's settings; undefined where there is no such optimizer. */
export function optimizerSettings(type: unknown): readonly string[] | undefined {
  const found = Object.values(optimizers).find(({ name }) => name === type);
  return found && Object.keys((found.config as unknown as z.ZodObject).shape);
}

/** The field `train.optimizer` of a recipe: a name and its settings. */
export const optimizerConfig = z.discriminatedUnion('type', variants as never);

/** An optimizer's name and its settings, as recipes give them. */
export type OptimizerChoice = { readonly type: string } & Readonly<Record<string, unknown>>;

/** Whether an optimizer updates in the backward pass. */
export const isInBackward = ({ type }: OptimizerChoice): boolean =>
  (optimizers as Record<string, Pick<OptimizerType<never>, 'inBackward'>>)[type]?.inBackward ?? false;

/** Whether several processes can each update a part of a parameter with an optimizer. */
export const isDivisible = ({ type }: OptimizerChoice): boolean =>
  (optimizers as Record<string, Pick<OptimizerType<never>, 'perNumber'>>)[type]?.perNumber ?? false;

/**
 * Returns an optimizer of these parameters.
 * @throws GraftError 'usage' for an unknown optimizer or setting, or settings that do not fit the parameters
 */
export function createOptimizer(
  { type, ...settings }: OptimizerChoice,
  parameters: ReadonlyMap<string, Tensor>,
  placement: Placement = {},
): Optimizer {
  const found = (optimizers as Record<string, OptimizerType<{ weight_decay: number }>>)[type];
  if (!found) {
    throw new GraftError('usage', `there is no optimizer '${type}'`, {
      hint: `Those known: ${Object.keys(optimizers).join(', ')}`,
    });
  }
  const config = parseWith(found.config, settings, 'optimizer');
  return makeOptimizer(found, config, parameters, placement);
}
