/** What a comparison is: a recipe without a method, and the methods that are to learn from it under the same budget. */
import { dirname, resolve } from 'node:path';
import { z } from 'zod';
import { GraftError, parseWith } from '../base/index.ts';
import { taskNames } from '../nn/index.ts';
import { parseRecipe, type Recipe, readYaml } from '../train/index.ts';
import { type Contender, contenders } from './contenders.ts';

/** The field `compare`. */
export const compareSchema = z.strictObject({
  title: z.string().optional().describe('What stands above the table; default: model and file.'),
  answers: z
    .array(z.string())
    .min(2)
    .optional()
    .describe('causal-lm: rows are answered with one of these; accuracy is how often the likeliest is right.'),
  text: z
    .string()
    .optional()
    .describe(
      'What prompts and prefixes begin from, taken whole: best one or two rows in the form of the chat. Default: a sentence that names the answers, for 20 virtual tokens.',
    ),
  methods: z
    .record(
      z.string(),
      z.strictObject({
        method: z.unknown().optional().describe('Default: what is compared under this name where none are named.'),
        task: z.enum(taskNames).optional(),
        train: z.record(z.string(), z.unknown()).optional(),
      }),
    )
    .optional()
    .describe(
      'Methods by a name of yours, each with a task and fields of train in the place of the common ones. Default: all.',
    ),
  only: z.array(z.string()).min(1).optional().describe('Names of those that are compared.'),
  metric: z.string().optional().describe('Which metric counts; default: the first that the task has.'),
  loss: z
    .number()
    .positive()
    .optional()
    .describe('Loss whose steps are counted; default: what half of the methods reach.'),
});

export interface Comparison {
  readonly title: string;
  readonly dir: string;
  readonly contenders: ReadonlyMap<string, Recipe>;
  readonly answers: readonly string[] | undefined;
  readonly metric: string | undefined;
  readonly loss: number | undefined;
}

/**
 * Reads a comparison: a recipe whose `method` is left out, with a field `compare`.
 * @throws GraftError 'usage' with all mistakes of it, or of the recipe that it makes of a method
 */
export function readComparison(file: string): Comparison {
  const raw = readYaml(file).toJS() as Record<string, unknown>;
  const { compare = {}, method, train = {}, run, ...rest } = raw;
  const place = `${file}: compare`;
  if (method !== undefined) {
    throw new GraftError('usage', 'a comparison has no method of its own', {
      place: file,
      hint: 'Name the methods under compare.methods, or leave them out to compare all',
    });
  }
  if (rest.tasks !== undefined) {
    throw new GraftError('usage', 'methods are compared on one task', {
      place: `${file}: tasks`,
      hint: 'Make a comparison of each',
    });
  }
  const { title, answers, text, methods, only, metric, loss } = parseWith(compareSchema, compare, place);
  if (answers && metric) {
    throw new GraftError('usage', 'answers are measured by accuracy', {
      place: `${place}.metric`,
      hint: 'Leave one of the two out',
    });
  }
  const presets = contenders({
    text,
    answers,
    images: rest.task === 'image-classification',
  });
  const offered: Readonly<Record<string, Partial<Contender>>> = methods ?? presets;
  const chosen = Object.keys(offered).filter((name) => !only || only.includes(name));
  if (chosen.length === 0) {
    const names = Object.keys(offered).join(', ');
    throw new GraftError('usage', 'no method is left to compare', { place, hint: `There are ${names}` });
  }
  const base = dirname(resolve(file));
  const dir = (run as { dir?: string } | undefined)?.dir;
  if (!dir) throw new GraftError('usage', 'run.dir is missing', { place: file });
  const recipes = chosen.map((name): [string, Recipe] => {
    const own = offered[name]!;
    const preset = own.method === undefined ? presets[name] : undefined;
    const { task, method } = { ...preset, ...own };
    const recipe = {
      ...rest,
      ...(task !== undefined && { task }),
      method,
      train: { ...(train as object), ...preset?.train, ...own.train },
      run: { ...(run as object), dir: resolve(base, dir, name) },
    };
    return [name, parseRecipe(recipe, `${file}, ${name}`, base)];
  });
  if (!recipes[0]![1].data.eval) {
    throw new GraftError('usage', 'a comparison measures on a file of its own', {
      place: file,
      hint: 'Name it as data.eval',
    });
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
