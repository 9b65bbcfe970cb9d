/** Reads a comparison: a recipe without a method, and the methods that are trained with it under the same budget. */
import { dirname, resolve } from 'node:path';
import { z } from 'zod';
import { GraftError, parseWith } from '../base/index.ts';
import { type ExportFormat, exportChoice, exportFormats } from '../models/index.ts';
import { taskNames } from '../nn/index.ts';
import { isGgufFormat } from '../quant/index.ts';
import { parseRecipe, type Recipe, readYaml } from '../train/index.ts';
import { type Contender, contenders } from './contenders.ts';

/** How a trained model is rounded before it is measured, in the words of `graft merge`. */
const rounding = z.strictObject({
  to: z.enum(exportFormats).describe('Format of the linear layers of the blocks.'),
  group_size: z
    .int()
    .positive()
    .optional()
    .describe('Integers: elements of a row that share a scale; default: the row.'),
  embedding: z
    .enum(['none', ...exportFormats])
    .optional()
    .describe('Format of the table of embeddings and of the output layer; default: as graft merge has it.'),
});

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
        rounded: rounding
          .optional()
          .describe('What was trained is merged, rounded to a number format, and measured as it is then.'),
        of: z
          .string()
          .optional()
          .describe('With rounded: nothing is trained; the result of this method, listed before, is rounded.'),
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

/** One method of a comparison. */
export interface Contestant {
  /** What is trained, and the rows that it is measured on. */
  readonly recipe: Recipe;
  /** How its result is rounded before it is measured. */
  readonly rounded?: z.output<typeof rounding> | undefined;
  /** The method whose result is measured; undefined: it trains its own. */
  readonly of?: string | undefined;
}

/** A comparison that was read and checked. */
export interface Comparison {
  /** The title of the page. */
  readonly title: string;
  /** Absolute path of the directory for results. */
  readonly dir: string;
  /** The methods by their names. */
  readonly contenders: ReadonlyMap<string, Contestant>;
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
  const available: Readonly<Record<string, Partial<Contender> & Omit<Contestant, 'recipe'>>> = methods ?? presets;
  const names = Object.keys(available).filter((name) => !only || only.includes(name));
  if (names.length === 0) {
    const choices = Object.keys(available).join(', ');
    throw new GraftError('usage', 'compare.only matches no method', { place, hint: `Choose from ${choices}` });
  }
  const base = dirname(resolve(file));
  const dir = (run as { dir?: string } | undefined)?.dir;
  if (!dir) throw new GraftError('usage', 'run.dir is missing', { place: file });
  const planned = new Map<string, Contestant>();
  for (const name of names) {
    const { of, rounded, ...settings } = available[name]!;
    // Before anything is trained.
    if (rounded) requireWritable(rounded, `${place}.methods.${name}.rounded`);
    if (of !== undefined) {
      planned.set(name, { recipe: recipeToRound(name, of, { ...settings, rounded }, planned, place), rounded, of });
      continue;
    }
    const preset = settings.method === undefined ? presets[name] : undefined;
    const { task, method } = { ...preset, ...settings };
    const recipe = {
      ...rest,
      ...(task !== undefined && { task }),
      method,
      train: { ...(train as object), ...preset?.train, ...settings.train },
      run: { ...(run as object), dir: resolve(base, dir, name) },
    };
    planned.set(name, { recipe: parseRecipe(recipe, `${file}, ${name}`, base), rounded });
  }
  if (![...planned.values()][0]!.recipe.data.eval) {
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
    contenders: planned,
    answers,
    metric,
    loss,
  };
}

/** Where what was trained is written in a number format. */
export const roundedName = (to: ExportFormat): string => (isGgufFormat(to) ? 'rounded.gguf' : 'rounded');

/** @throws GraftError 'usage' for settings that contradict each other */
function requireWritable({ to, group_size: groupSize, embedding }: z.output<typeof rounding>, place: string): void {
  try {
    exportChoice({ to, groupSize, embedding, out: roundedName(to), dtype: 'float32' });
  } catch (error) {
    throw error instanceof GraftError ? error.at(place) : error;
  }
}

/** The recipe of the method whose result is rounded and measured. @throws GraftError 'usage' where there is none, or more is asked for */
function recipeToRound(
  name: string,
  of: string,
  { rounded, ...settings }: Partial<Contender> & Omit<Contestant, 'recipe' | 'of'>,
  before: ReadonlyMap<string, Contestant>,
  place: string,
): Recipe {
  const other = before.get(of);
  const problem =
    Object.keys(settings).length > 0
      ? `it trains nothing, so it has no field ${Object.keys(settings)[0]}`
      : rounded === undefined
        ? 'the field rounded is missing, so it would be the same method again'
        : other === undefined || other.of !== undefined
          ? `no method of this name that trains is listed before it`
          : undefined;
  if (problem === undefined) return other!.recipe;
  throw new GraftError('usage', `the method is to round the result of '${of}', and ${problem}`, {
    place: `${place}.methods.${name}`,
  });
}
