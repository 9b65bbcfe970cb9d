import { z } from 'zod';
import { GraftError } from '../../base/index.ts';
import type { ModelPart } from '../../nn/index.ts';

const partName = z.union([
  z.int().nonnegative(),
  z.string().regex(/^(embeddings|head|layers|\d+-\d+)$/, 'a part is a layer’s number, 0-5, layers, embeddings or head'),
]);
const partNames = z.union([partName, z.array(partName).min(1)]);

/** What messages call a part. */
export const nameOfPart = (part: ModelPart): string => (typeof part === 'number' ? `layer ${part}` : part);

/** Names of parts, as a recipe gives them. */
export type PartNames = z.infer<typeof partNames>;

const given = (...values: unknown[]) => values.filter((value) => value !== undefined).length;

const rule = z
  .strictObject({
    freeze: partNames.optional().describe('Parts that are frozen.'),
    train: partNames.optional().describe('Parts that train again.'),
    step: z.int().nonnegative().optional().describe('When: after this many steps; 0: from the beginning.'),
    plateau: z
      .int()
      .positive()
      .optional()
      .describe(
        'When: the mean training loss of this many steps is not lower than that of as many steps before. Rules with a plateau take turns, in their order: each waits until the one before it has come, and then counts anew.',
      ),
    min_fall: z
      .number()
      .nonnegative()
      .optional()
      .describe('With plateau: the share of the loss by which it has to fall. Default: 0.01.'),
    gradient_norm: z
      .number()
      .positive()
      .optional()
      .describe(
        'When: the 2-norm of the gradient of a part, as a mean over `window` steps, is below this share of its first such mean. Each part for itself.',
      ),
    window: z
      .int()
      .positive()
      .optional()
      .describe('With gradient_norm: the steps, in which the part trains, of a mean. Default: 10.'),
    for: z
      .int()
      .positive()
      .optional()
      .describe(
        'Steps in which the rule counts; then the parts stand again as rules without `for` say. Default: it counts until another rule changes them.',
      ),
  })
  .refine(({ freeze, train }) => given(freeze, train) === 1, 'a rule has either freeze or train')
  .refine(
    ({ step, plateau, gradient_norm }) => given(step, plateau, gradient_norm) === 1,
    'a rule has one of step, plateau and gradient_norm',
  )
  .refine(({ train, gradient_norm }) => given(train, gradient_norm) < 2, 'a frozen part has no gradient_norm')
  .refine(({ plateau, min_fall }) => given(plateau) >= given(min_fall), 'min_fall is for plateau')
  .refine(({ gradient_norm, window }) => given(gradient_norm) >= given(window), 'window is for gradient_norm');

export type Rule = z.infer<typeof rule>;

export const layerwiseConfig = z
  .strictObject({
    policy: z
      .enum(['last', 'lisa', 'badam', 'schedule'])
      .describe(
        'last: the last layers train, the others never. lisa: a few layers at random train at a time (LISA). badam: one block trains at a time (BAdam). schedule: everything trains but what rules freeze.',
      ),
    layers: z
      .int()
      .positive()
      .optional()
      .describe('last, lisa: how many layers train at a time. Default of lisa: 2; last needs it.'),
    every: z
      .int()
      .positive()
      .optional()
      .describe('lisa, badam: steps until other layers are chosen. Default: 20 for lisa, 50 for badam.'),
    order: z
      .enum(['random', 'ascending', 'descending', 'fixed'])
      .optional()
      .describe(
        'badam: which block follows. random: every block once in a random order, then in another; ascending: from the inputs on; descending: from the outputs on; fixed: as `blocks` lists them. Default: random.',
      ),
    blocks: partNames
      .optional()
      .describe(
        'badam: the blocks, each of which is a part: a layer’s number, a range as 0-5, layers (all of them), embeddings, head (all that comes after the layers). Default: layers.',
      ),
    always: z
      .union([partName, z.array(partName)])
      .optional()
      .describe(
        'last, lisa, badam: parts that train in every step. Default: embeddings and head for lisa, head for last, none for badam.',
      ),
    rules: z
      .array(rule)
      .min(1)
      .optional()
      .describe('schedule: what is frozen or trains again, and when. In one step, later rules win.'),
  })
  .describe(
    'Says which layers of the method beside it train in which step: the last ones, a few at random (LISA, arXiv 2403.17919), one block at a time (BAdam, arXiv 2404.02827), or by a schedule that freezes them. What is frozen takes no memory for gradients and optimizer.',
  );

export type LayerwiseConfig = z.infer<typeof layerwiseConfig>;

export function refuse(problem: string, hint: string): never {
  throw new GraftError('usage', `layerwise: ${problem}`, { place: 'method', hint });
}

const fieldsOf = {
  last: ['layers', 'always'],
  lisa: ['layers', 'every', 'always'],
  badam: ['every', 'order', 'blocks', 'always'],
  schedule: ['rules'],
} as const satisfies Record<LayerwiseConfig['policy'], readonly (keyof LayerwiseConfig)[]>;

/** @throws GraftError 'usage' for a field that the policy does not read, or one that it needs */
export function requireFields(config: LayerwiseConfig): void {
  const { policy, ...fields } = config;
  const known: readonly string[] = fieldsOf[policy];
  for (const [name, value] of Object.entries(fields)) {
    if (value !== undefined && !known.includes(name))
      refuse(`policy ${policy} has no field ${name}`, `Its fields: ${known.join(', ')}`);
  }
  if (policy === 'last' && config.layers === undefined)
    refuse('policy last needs layers', 'Say how many of the last layers train');
  if (policy === 'schedule' && !config.rules) refuse('policy schedule needs rules', 'List what is frozen, and when');
  if (config.order === 'fixed' && config.blocks === undefined)
    refuse('order: fixed needs blocks', 'List the blocks in their order; one block alone trains all the time');
}

/**
 * Returns the parts that names stand for, in their order.
 * @param field what errors call them
 * @throws GraftError 'usage' for a layer that the model does not have
 */
export function partsNamed(names: PartNames, layers: number, field: string): ModelPart[] {
  const has = `and the model has ${layers} layers, 0 to ${layers - 1}`;
  return [names].flat().flatMap((name): ModelPart[] => {
    if (name === 'embeddings' || name === 'head') return [name];
    const [first, last] = name === 'layers' ? [0, layers - 1] : String(name).split('-').map(Number);
    const end = last ?? first!;
    if (end >= layers) refuse(`${field} names layer ${end}, ${has}`, 'Name layers that exist');
    if (end < first!) refuse(`${field} has the range ${name}, which is empty`, `Write ${end}-${first}`);
    return Array.from({ length: end - first! + 1 }, (_, i) => first! + i);
  });
}
