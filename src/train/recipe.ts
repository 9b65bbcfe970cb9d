import { existsSync } from 'node:fs';
import { dirname, isAbsolute, resolve } from 'node:path';
import { parseDocument } from 'yaml';
import { z } from 'zod';
import { adapterIn } from '../adapters/index.ts';
import { GraftError, parseWith } from '../base/index.ts';
import { columnNames, formatNames, type RowSource, truncations, withPaths } from '../data/index.ts';
import { isDataset } from '../io/index.ts';
import { type MethodChoice, methods, requireSavable } from '../methods/index.ts';
import { taskNames } from '../nn/index.ts';
import { isInBackward, type OptimizerChoice } from '../optim/index.ts';
import { quantizeModes } from '../quant/index.ts';

import { deepspeedField, withDeepspeed } from './deepspeed.ts';
import { huggingFaceNames } from './hugging-face-names.ts';
import { isObject, trainSchema, withOptimizer } from './recipe-train.ts';
import { requireNoWholeGradients } from './whole-gradients.ts';
import { readYaml } from './yaml.ts';

const methodSchemas = Object.values(methods).map((m) =>
  z
    .strictObject({
      type: z.literal(m.name).describe('Name of the method.'),
      adapter: z
        .string()
        .optional()
        .describe('Directory of a saved adapter to begin from; the config saved with it is used.'),
      train: z
        .boolean()
        .default(true)
        .describe('false: the method is attached but frozen, as the lower adapters of a stack are.'),
      ...(m.config as unknown as z.ZodObject).shape,
    })
    .describe(m.config.description ?? ''),
);

/** A file, several, or rows in memory (from TypeScript). */
const rowSource: z.ZodType<RowSource, RowSource> = z.union([
  z.string(),
  z.array(z.string()).min(1),
  z.array(z.record(z.string(), z.unknown())).min(1),
]);

/** The fields of `data` that have a default which may be without effect. */
export const dataDefaults = { max_length: 1024, train_on: 'completion', stride: 128 } as const;

const data = z.strictObject({
  train: rowSource.describe(
    'Rows to learn from: a file (.jsonl, .json, .csv, .tsv, .parquet, or .conll for tagged words, which may be compressed: .gz, .zst), a folder of such files, a pattern (rows-*.jsonl), a data set on the hub (hub:owner/name, hub:owner/name/data/train-*), several of these as a list, a folder of images with one folder a class, or the rows themselves.',
  ),
  eval: rowSource.optional().describe('Rows to measure on, as train; without it, held_out rows of train.'),
  held_out: z
    .number()
    .positive()
    .optional()
    .describe(
      'Share of the training rows (below 1), or number of them, that is held out to measure on; the windows of one question count as one row.',
    ),
  format: z
    .enum(['auto', ...formatNames, 'batches'])
    .default('auto')
    .describe(
      'Format of the rows; auto: detected from their fields. batches: one optimizer step a line, ids and labels as given.',
    ),
  columns: z
    .partialRecord(z.enum(columnNames), z.string())
    .optional()
    .describe(
      'The column of the file for each column of the format, where it has another name: { text: body, label: category }.',
    ),
  limit: z
    .int()
    .positive()
    .optional()
    .describe(
      'Rows that are read at most, of train and of eval: the first ones; of a folder of images, of each class in turn.',
    ),
  delimiter: z
    .string()
    .length(1)
    .optional()
    .describe('What separates the fields of a .csv file. Default: found from its first lines.'),
  max_length: z
    .int()
    .positive()
    .default(dataDefaults.max_length)
    .describe('Tokens of a row at most; longer rows are cut, and counted in a warning.'),
  truncate: z
    .enum(truncations)
    .optional()
    .describe(
      'Where longer rows are cut: at the end; at the start, so that their last answer stays; in the middle of what is not learned, so that answers stay. Default: end; texts that are only read as the tokenizer says (truncation_side).',
    ),
  train_on: z
    .enum(['completion', 'all'])
    .default(dataDefaults.train_on)
    .describe('completion: the loss counts the assistant turns or completions only; all: every token.'),
  stride: z
    .int()
    .nonnegative()
    .default(dataDefaults.stride)
    .describe('question-answering: tokens that two windows of a long context overlap by.'),
});

const evaluation = z.strictObject({
  every: z
    .int()
    .positive()
    .optional()
    .describe('Steps between two measurements on the held-out rows; default: once an epoch.'),
  patience: z
    .int()
    .positive()
    .optional()
    .describe('Early stopping: stop after this many measurements without a lower held-out loss.'),
  keep: z
    .enum(['best', 'last'])
    .default('best')
    .describe('Which adapter is saved: the one with the lowest held-out loss, or the one of the last step.'),
});

const run = z.strictObject({
  dir: z
    .string()
    .describe('Directory that the run writes to: adapter/ (or model/), checkpoints/, events.jsonl, run.json.'),
  checkpoint_every: z
    .int()
    .positive()
    .optional()
    .describe('Steps between two checkpoints; default: about every minute.'),
  keep_checkpoints: z.int().positive().default(2).describe('Older checkpoints are deleted.'),
});

/** The fields of a task: at the top of a recipe with one task, else in each of its `tasks`. */
const taskFields = {
  task: z
    .enum(taskNames)
    .optional()
    .describe(
      'The task that the model learns; default: that of the adapter or the checkpoint, causal-lm for decoders.',
    ),
  labels: z
    .array(z.union([z.string(), z.number()]))
    .min(1)
    .optional()
    .describe(
      'Classes in the order of the head; default: those of the adapter or the checkpoint, else those found in the data, sorted. One label: regression.',
    ),
  class_weights: z
    .union([z.literal('balanced'), z.record(z.string(), z.number().positive())])
    .optional()
    .describe(
      'Weight of each class in the loss, 1 where it is not given; balanced: as if all classes were equally frequent.',
    ),
  temperature: z
    .number()
    .positive()
    .optional()
    .describe('embedding: similarities are divided by this before the softmax; default 0.05.'),
  data: data.describe('Rows to learn from, and rows to measure on.'),
};

const method = z.discriminatedUnion('type', methodSchemas as never);

export const recipeSchema = z.strictObject({
  model: z.string().describe('A Hugging Face directory, a .gguf file, or a hub id.'),
  quantize: z
    .enum(quantizeModes)
    .default('none')
    .describe(
      'How frozen weights are held in memory: unpacked to float32 (none), as the file stores them (keep: GGUF blocks, bfloat16), or quantised while loading (int8, nf4).',
    ),
  method: z
    .union([method, z.array(method).min(1)])
    .describe('The fine-tuning method, with PEFT’s field names; several methods together as a list.'),
  adapter: z
    .string()
    .optional()
    .describe('Directory of a saved adapter to begin from; the config saved with it is used.'),
  ...taskFields,
  train: trainSchema.prefault({}).describe('The optimizer, the number of steps, and their size.'),
  deepspeed: deepspeedField,
  eval: evaluation.prefault({}).describe('Measurements on held-out rows during training.'),
  run: run.describe('Where the run is saved, and how often.'),
});

const tasks = z
  .record(
    z.string().regex(/^[A-Za-z][\w-]*$/, 'a task name is a letter, then letters, digits, - and _'),
    z.strictObject({
      ...taskFields,
      weight: z
        .number()
        .positive()
        .optional()
        .describe(
          'Share of the optimizer steps relative to the other tasks, 1 where only others have a weight. Default: in proportion to the rows.',
        ),
    }),
  )
  .refine((named) => Object.keys(named).length > 0, 'there are no tasks')
  .describe(
    'Several tasks by name, instead of task, labels, class_weights, temperature and data: they share one adapter, and each has its own head. Every optimizer step is for one task; an adapter is saved for each, as adapter/NAME/.',
  );

/** A recipe of several tasks: the fields of a task are given in each of them. */
export const severalSchema = recipeSchema.extend({
  ...Object.fromEntries(
    Object.keys(taskFields).map((name) => [
      name,
      z.custom((value) => value === undefined, 'must be given in each of the tasks instead').optional(),
    ]),
  ),
  tasks,
});

type TaskFields = Pick<z.output<typeof recipeSchema>, keyof typeof taskFields>;

/**
 * A recipe that was read and checked: the fields of a recipe file (docs/recipe.md), with defaults filled in and paths
 * made absolute.
 */
export type Recipe = Omit<z.output<typeof recipeSchema>, 'method' | 'train'> & {
  method: MethodChoice | MethodChoice[];
  train: Omit<z.output<typeof trainSchema>, 'optimizer'> & { optimizer: OptimizerChoice };
  /** By name; `data` is then that of the first, and the other fields of a task are absent. */
  tasks?: Readonly<Record<string, TaskFields & { readonly weight?: number | undefined }>>;
};

/** One recipe for each task, with the task's name; a recipe of one task is returned as it is. An adapter to begin from holds what tasks share, not their heads. */
export function recipesOf({ tasks, ...common }: Recipe): [name: string | undefined, recipe: Recipe][] {
  if (!tasks) return [[undefined, common]];
  return Object.entries(tasks).map(([name, { weight: _, ...fields }]) => [
    name,
    { ...common, ...fields, adapter: undefined },
  ]);
}

const initPath = 'prompt_tuning_init_state_dict_path';

/** The recipe with its relative paths made absolute, from its own folder; a model that is not found there may be a hub id. */
function resolved(recipe: Recipe, base: string): Recipe {
  const path = (p: string) => (isAbsolute(p) ? p : resolve(base, p));
  const { run, model, tasks, train } = recipe;
  const { offload } = train;
  const source = (rows: RowSource) => withPaths(rows, (name) => (isDataset(name) ? name : path(name)));
  const files = (data: Recipe['data']) => ({
    ...data,
    train: source(data.train),
    ...(data.eval !== undefined && { eval: source(data.eval) }),
  });
  const several =
    tasks && Object.entries(tasks).map(([name, fields]) => [name, { ...fields, data: files(fields.data) }] as const);
  const choice = (fields: MethodChoice): MethodChoice => ({
    ...fields,
    ...(fields.adapter !== undefined && { adapter: adapterIn(path(fields.adapter)) }),
    ...(typeof fields[initPath] === 'string' && { [initPath]: path(fields[initPath]) }),
    ...(Array.isArray(fields.adapters) && { adapters: fields.adapters.map((dir) => adapterIn(path(dir))) }),
  });
  return {
    ...recipe,
    model: existsSync(path(model)) && path(model) !== resolve(model) ? path(model) : model,
    ...(several ? { tasks: Object.fromEntries(several), data: several[0]![1].data } : { data: files(recipe.data) }),
    method: Array.isArray(recipe.method) ? recipe.method.map(choice) : choice(recipe.method),
    ...(recipe.adapter !== undefined && { adapter: adapterIn(path(recipe.adapter)) }),
    run: { ...run, dir: path(run.dir) },
    train: { ...train, offload: { ...offload, ...(offload.dir !== undefined && { dir: path(offload.dir) }) } },
  };
}

const pathField = new RegExp(
  `^(adapter|deepspeed|method\\.(\\d+\\.)?(adapter|${initPath})|(tasks\\.[^.]+\\.)?data(\\.(train|eval))?|(run|train\\.offload)\\.dir)$`,
);

/** `data: rows.jsonl`, or rows in memory, is short for `data: { train: … }`. */
const withData = (value: unknown): unknown =>
  isObject(value) && (typeof value.data === 'string' || Array.isArray(value.data))
    ? { ...value, data: { train: value.data } }
    : value;

/**
 * Checks a recipe and fills in its defaults.
 * @param value the fields of a recipe file (docs/recipe.md); `data` may be rows in memory
 * @param place what errors call the recipe
 * @param base folder that relative paths start from
 * @throws GraftError 'usage' that lists all mistakes
 */
export function parseRecipe(value: unknown, place = 'recipe', base = process.cwd()): Recipe {
  const several = isObject(value) && 'tasks' in value;
  const complete = several
    ? {
        ...value,
        ...(isObject(value.tasks) && {
          tasks: Object.fromEntries(Object.entries(value.tasks).map(([name, fields]) => [name, withData(fields)])),
        }),
      }
    : withData(value);
  const parsed = parseWith(
    several ? severalSchema : recipeSchema,
    withOptimizer(withDeepspeed(complete, place, base), place),
    place,
    'usage',
    huggingFaceNames,
  );
  const recipe = resolved(parsed as unknown as Recipe, base);
  const fromAdapter = recipe.adapter !== undefined;
  requireSavable([recipe.method].flat(), { severalTasks: several, fromAdapter, place: `${place}, method` });
  const { optimizer, max_grad_norm: maxGradNorm } = recipe.train;
  if (isInBackward(optimizer)) requireNoWholeGradients({ maxGradNorm }, `${place}, train.max_grad_norm`);
  parsedRecipes.add(recipe);
  return recipe;
}

/** Recipes that are complete, with defaults filled in and paths made absolute. */
const parsedRecipes = new WeakSet<object>();

/** Whether a recipe is one that `parseRecipe` or `readRecipe` returned. */
export const isParsed = (recipe: object): recipe is Recipe => parsedRecipes.has(recipe);

/**
 * Reads a recipe file.
 * @param overrides `a.b=value` pairs, the value in YAML; paths in them are relative to the working directory
 * @throws GraftError 'usage' for a missing file, bad YAML (with line and column) or mistakes in the recipe (all at once)
 */
export function readRecipe(file: string, overrides: readonly string[] = []): Recipe {
  const document = readYaml(file);
  for (const override of overrides) {
    const [, key, value] = /^([\w.-]+)=(.*)$/s.exec(override) ?? [];
    if (!key) throw new GraftError('usage', `'${override}' is not of the form a.b=value`, { place: '--set' });
    const parsed = parseDocument(value!);
    if (parsed.errors.length > 0)
      throw new GraftError('usage', `the value of '${override}' is not valid YAML`, { place: '--set' });
    const field: unknown = parsed.toJS();
    const local = (name: string) => (pathField.test(key) && !isDataset(name) ? resolve(name) : name);
    const isList = Array.isArray(field) && field.every((item) => typeof item === 'string');
    try {
      const absolute = typeof field === 'string' ? local(field) : isList ? field.map(local) : field;
      document.setIn(key.split('.'), absolute);
    } catch (cause) {
      throw new GraftError('usage', `'${key}' names a field inside a value that has no fields`, {
        place: '--set',
        cause,
      });
    }
  }
  return parseRecipe(document.toJS(), file, dirname(resolve(file)));
}
