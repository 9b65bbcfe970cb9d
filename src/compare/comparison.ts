/** Reads a comparison: a recipe without a method, and the methods that are trained with it under the same budget. */
import { dirname, resolve } from 'node:path';
import { z } from 'zod';
import { GraftError, parseWith } from '../base/index.ts';
import { taskNames } from '../nn/index.ts';
import { parseRecipe, type Recipe, readYaml } from '../train/index.ts';
import { type Contender, contenders } from './contenders.ts';

/** Schema of the field `compare`. */
export const compareSchema = z.strictObject({
  title: z.string().optional().describe('Title of the page; default: model and training file.'),
  answers: z
    .array(z.string())
    .min(2)
    .optional()
    .describe('causal-lm: the possible answers; accuracy is how often the most likely one is right.'),
  text: z
    .string()
    .optional()
    .describe(
      'Initial text of prompts and prefixes, with as many virtual tokens as it has; one or two rows in the chat format work best. Default: a sentence that names the answers, with 20 virtual tokens.',
    ),
  methods: z
    .record(
      z.string(),
      z.strictObject({
        method: z.unknown().optional().describe('Default: the preset of this name.'),
        task: z.enum(taskNames).optional(),
        train: z.record(z.string(), z.unknown()).optional(),
      }),
    )
    .optional()
    .describe(
      'Methods by a name of your choice, each with a task and fields of train that override the common ones. Default: all presets.',
    ),
  only: z.array(z.string()).min(1).optional().describe('Names of the methods to compare.'),
  metric: z.string().optional().describe('Metric to compare by; default: the first metric of the task.'),
  loss: z
    .number()
    .positive()
    .optional()
    .describe('Training loss for the column steps to loss; default: the loss that half of the methods reach.'),
});

/** A comparison that was read and checked. */
export interface Comparison {
  /** The title of the page. */
  readonly title: string;
  /** Absolute path of the directory for results. */
  readonly dir: string;
  /** The recipe of each method, by its name. */
  readonly contenders: ReadonlyMap<string, Recipe>;
  /** causal-lm: the possible answers. */
  readonly answers: readonly string[] | undefined;
  /** The metric to compare by; undefined: the first one of the task. */
  readonly metric: string | undefined;
  /** The training loss whose first step is counted; undefined: the loss that half of the methods reach. */
  readonly loss: number | undefined;
}

/**
 * Reads a comparison: a recipe without `method`, with a field `compare`.
 * @throws GraftError 'usage' with all mistakes in it, or in the recipe of one of its methods
 */
export function readComparison(file: string): Comparison {
  const raw = readYaml(file).toJS() as Record<string, unknown>;
  const { compare = {}, method, train = {}, run, ...rest } = raw;
  const place = `${file}: compare`;
  if (method !== undefined) {
    throw new GraftError('usage', 'a comparison does not support the field method', {
      place: file,
      hint: 'Name methods under compare.methods, or leave that out to compare all',
    });
  }
  if (rest.tasks !== undefined) {
    throw new GraftError('usage', 'a comparison does not support several tasks', {
      place: `${file}: tasks`,
      hint: 'Write a comparison for each task',
    });
  }
  const { title, answers, text, methods, only, metric, loss } = parseWith(compareSchema, compare, place);
  if (answers && metric) {
    throw new GraftError(
      'usage',
      'compare.answers cannot be combined with compare.metric: answers are measured by accuracy',
      {
        place: `${place}.metric`,
        hint: 'Remove one of the two',
      },
    );
  }
  const presets = contenders({
    text,
    answers,
    images: rest.task === 'image-classification',
  });
  const available: Readonly<Record<string, Partial<Contender>>> = methods ?? presets;
  const names = Object.keys(available).filter((name) => !only || only.includes(name));
  if (names.length === 0) {
    const choices = Object.keys(available).join(', ');
    throw new GraftError('usage', 'compare.only matches no method', { place, hint: `Choose from ${choices}` });
  }
  const base = dirname(resolve(file));
  const dir = (run as { dir?: string } | undefined)?.dir;
  if (!dir) throw new GraftError('usage', 'run.dir is missing', { place: file });
  const recipes = names.map((name): [string, Recipe] => {
    const settings = available[name]!;
    const preset = settings.method === undefined ? presets[name] : undefined;
    const { task, method } = { ...preset, ...settings };
    const recipe = {
      ...rest,
      ...(task !== undefined && { task }),
      method,
      train: { ...(train as object), ...preset?.train, ...settings.train },
      run: { ...(run as object), dir: resolve(base, dir, name) },
    };
    return [name, parseRecipe(recipe, `${file}, ${name}`, base)];
  });
  if (!recipes[0]![1].data.eval) {
    throw new GraftError(
      'usage',
      'data.eval is missing: a comparison measures every method on rows that none is trained on',
      {
        place: file,
        hint: 'Add data.eval with a file of held-out rows',
      },
    );
  }
  return {
    title: title ?? `${rest.model}, ${(rest.data as { train?: string } | undefined)?.train}`,
    dir: resolve(base, dir),
    contenders: new Map(recipes),
    answers,
    metric,
    loss,
  };
}
