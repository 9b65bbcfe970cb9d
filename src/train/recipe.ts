import { existsSync, readFileSync } from 'node:fs';
import { dirname, isAbsolute, resolve } from 'node:path';
import { type Document, LineCounter, parseDocument } from 'yaml';
import { z } from 'zod';
import { GraftError, nearestPath, parseWith } from '../base/index.ts';
import { formatNames } from '../data/index.ts';
import { type MethodChoice, methods } from '../methods/index.ts';
import { precisions, taskNames } from '../nn/index.ts';
import { adamwConfig, scheduleConfig } from '../optim/index.ts';

const methodSchemas = Object.values(methods).map((m) =>
  z
    .strictObject({
      type: z.literal(m.name).describe('Name of the method.'),
      adapter: z
        .string()
        .optional()
        .describe('Begin from this saved adapter; its own config counts, not the fields here.'),
      train: z
        .boolean()
        .default(true)
        .describe('false: the method is at work and frozen, as the lower adapters of a stack are.'),
      ...(m.config as unknown as z.ZodObject).shape,
    })
    .describe(m.config.description ?? ''),
);

const data = z.strictObject({
  train: z
    .string()
    .describe(
      'File to learn from: .jsonl, .json, .csv, .parquet or .conll (tagged words); or a folder of images, one folder a class.',
    ),
  eval: z.string().optional().describe('File to measure on; without it, held_out rows of train.'),
  held_out: z
    .number()
    .positive()
    .optional()
    .describe(
      'Share of the training rows (below 1) or number of them that is kept for measuring; the windows of one question count as one.',
    ),
  format: z
    .enum(['auto', ...formatNames, 'batches'])
    .default('auto')
    .describe('What a row is; auto tells by its fields. batches: one optimizer step a line, ids and labels as given.'),
  max_length: z.int().positive().default(1024).describe('Tokens; what is longer is cut, and reported.'),
  train_on: z
    .enum(['completion', 'all'])
    .default('completion')
    .describe('Learn the assistant turns or completions only, or every token.'),
  stride: z
    .int()
    .nonnegative()
    .default(128)
    .describe('question-answering: tokens that two windows of a long context share.'),
});

const train = adamwConfig.extend({
  lr: z.number().positive().default(2e-4).describe('Learning rate at its highest.'),
  epochs: z.number().positive().default(1).describe('Passes over the training rows.'),
  steps: z.int().positive().optional().describe('Optimizer steps; instead of epochs.'),
  batch_size: z.int().positive().default(8).describe('Rows in one optimizer step.'),
  micro_tokens: z
    .int()
    .positive()
    .optional()
    .describe(
      'Tokens that are in memory at one time; the gradient does not depend on it. Default: fits memory and processor.',
    ),
  gradient_checkpointing: z
    .boolean()
    .optional()
    .describe(
      'Keep of each block only what goes into it, and compute the rest again in the backward pass: the same losses, about a third more time, less memory (SmolLM2-135M, rows of 2,048 tokens: 1.4 GB in the place of 2.6). For long rows and large models. Default: false.',
    ),
  schedule: scheduleConfig.shape.type,
  warmup_steps: scheduleConfig.shape.warmup_steps,
  warmup_ratio: scheduleConfig.shape.warmup_ratio,
  max_grad_norm: z.number().positive().optional().describe('Gradients are scaled down to this 2-norm.'),
  threads: z.int().positive().optional().describe('Processor threads; default all cores.'),
  precision: z
    .enum(['auto', ...precisions])
    .default('auto')
    .describe(
      'Of products with frozen weights. mixed: the forward pass, and so every loss, in float32, factors of backward products rounded to bfloat16; bfloat16: of all products. auto: mixed where the processor multiplies bfloat16 faster, else float32.',
    ),
  seed: z.int().nonnegative().default(0).describe('Decides initial values, order and dropout.'),
});

const evaluation = z.strictObject({
  every: z.int().positive().optional().describe('Steps between two measurements; default: once an epoch.'),
  patience: z.int().positive().optional().describe('Stop after so many measurements without a better loss.'),
  keep: z
    .enum(['best', 'last'])
    .default('best')
    .describe('Which adapter is handed over: of the lowest held-out loss, or of the last step.'),
});

const run = z.strictObject({
  dir: z
    .string()
    .describe('Directory of everything that the run writes: adapter/ (or model/), events.jsonl, checkpoints/.'),
  checkpoint_every: z
    .int()
    .positive()
    .optional()
    .describe('Steps between two checkpoints; default: about every minute.'),
  keep_checkpoints: z.int().positive().default(2).describe('Older checkpoints are deleted.'),
});

/** What is said of a task: of the one that a recipe has, or of each of several. */
const taskFields = {
  task: z
    .enum(taskNames)
    .optional()
    .describe(
      'What the model learns to do; default: what the adapter or the checkpoint is for, causal-lm for decoders.',
    ),
  labels: z
    .array(z.union([z.string(), z.number()]))
    .min(1)
    .optional()
    .describe(
      'Classes by the order of the head; default: those of the adapter or the checkpoint, else those in the data, sorted. A single one: a regression.',
    ),
  class_weights: z
    .union([z.literal('balanced'), z.record(z.string(), z.number().positive())])
    .optional()
    .describe(
      'How much a row of each class counts, 1 where it is not named (a number near 0 for one that hardly counts); balanced: as if all were equally frequent.',
    ),
  temperature: z
    .number()
    .positive()
    .optional()
    .describe('embedding: similarities are divided by it before the softmax; default 0.05.'),
  data: data.describe('What to learn from, and what to measure on.'),
};

const method = z.discriminatedUnion('type', methodSchemas as never);

export const recipeSchema = z.strictObject({
  model: z.string().describe('A Hugging Face directory, a .gguf file, or a hub id.'),
  quantize: z
    .enum(['none', 'keep', 'int8', 'nf4'])
    .default('none')
    .describe(
      'How frozen weights are held: unpacked to float32 (none), as the file has them (keep: GGUF blocks, bfloat16), or packed at load (int8, nf4).',
    ),
  method: z
    .union([method, z.array(method).min(1)])
    .describe('How to fine-tune, under PEFT’s own field names; several methods together as a list.'),
  adapter: z
    .string()
    .optional()
    .describe('Begin from this saved adapter; its own config counts, not the fields of method.'),
  ...taskFields,
  train: train.prefault({}).describe('The optimizer, its steps and their size.'),
  eval: evaluation.prefault({}).describe('Measuring on held-out rows while training.'),
  run: run.describe('Where the run writes, and how often.'),
});

const tasks = z
  .record(
    z.string().regex(/^[A-Za-z][\w-]*$/, 'a task is named by a letter, then letters, digits, - and _'),
    z.strictObject({
      ...taskFields,
      weight: z
        .number()
        .positive()
        .optional()
        .describe(
          'How many turns the task has against the others, 1 where another one has a weight. Default: by the rows.',
        ),
    }),
  )
  .refine((named) => Object.keys(named).length > 0, 'there is none')
  .describe(
    'Several tasks by names of yours, in the place of task, labels, class_weights, temperature and data: one adapter that all share, a head each. Every optimizer step learns from one of them; what is handed over is adapter/NAME/ for each.',
  );

/** A recipe of several tasks: what is said of one stands with each. */
export const severalSchema = recipeSchema.extend({
  ...Object.fromEntries(
    Object.keys(taskFields).map((name) => [
      name,
      z.custom((given) => given === undefined, 'stands with each of the tasks').optional(),
    ]),
  ),
  tasks,
});

type TaskFields = Pick<z.output<typeof recipeSchema>, keyof typeof taskFields>;

export type Recipe = Omit<z.output<typeof recipeSchema>, 'method'> & {
  method: MethodChoice | MethodChoice[];
  /** By name; `data` is then the first one's, and no other field of a task is there. */
  tasks?: Readonly<Record<string, TaskFields & { readonly weight?: number | undefined }>>;
};

/** A recipe for each of several tasks, with its name; of one task, the recipe itself. An adapter to begin from is for what they share. */
export function recipesOf({ tasks, ...common }: Recipe): [name: string | undefined, recipe: Recipe][] {
  if (!tasks) return [[undefined, common]];
  return Object.entries(tasks).map(([name, { weight: _, ...fields }]) => [
    name,
    { ...common, ...fields, adapter: undefined },
  ]);
}

const initPath = 'prompt_tuning_init_state_dict_path';

/** Paths in a recipe are relative to the recipe's own folder; a model that is not there may be a hub id. */
function resolved(recipe: Recipe, base: string): Recipe {
  const path = (p: string) => (isAbsolute(p) ? p : resolve(base, p));
  const { run, model, tasks } = recipe;
  const files = (data: Recipe['data']) => ({
    ...data,
    train: path(data.train),
    ...(data.eval !== undefined && { eval: path(data.eval) }),
  });
  const several =
    tasks && Object.entries(tasks).map(([name, fields]) => [name, { ...fields, data: files(fields.data) }] as const);
  const choice = (given: MethodChoice): MethodChoice => ({
    ...given,
    ...(given.adapter !== undefined && { adapter: path(given.adapter) }),
    ...(typeof given[initPath] === 'string' && { [initPath]: path(given[initPath]) }),
    ...(Array.isArray(given.adapters) && { adapters: given.adapters.map(path) }),
  });
  return {
    ...recipe,
    model: existsSync(path(model)) && path(model) !== resolve(model) ? path(model) : model,
    ...(several ? { tasks: Object.fromEntries(several), data: several[0]![1].data } : { data: files(recipe.data) }),
    method: Array.isArray(recipe.method) ? recipe.method.map(choice) : choice(recipe.method),
    ...(recipe.adapter !== undefined && { adapter: path(recipe.adapter) }),
    run: { ...run, dir: path(run.dir) },
  };
}

const pathField = new RegExp(
  `^(adapter|method\\.(\\d+\\.)?(adapter|${initPath})|(tasks\\.[^.]+\\.)?data\\.(train|eval)|run\\.dir)$`,
);

/** A recipe given as an object, checked; paths are relative to `base`. @throws GraftError 'usage' with all mistakes */
export function parseRecipe(value: unknown, place = 'recipe', base = process.cwd()): Recipe {
  const several = typeof value === 'object' && value !== null && 'tasks' in value;
  return resolved(parseWith(several ? severalSchema : recipeSchema, value, place) as unknown as Recipe, base);
}

/** A YAML file. @throws GraftError 'usage' for a missing file, with the nearest name, or bad YAML, with line and column */
export function readYaml(file: string): Document {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (cause) {
    const near = nearestPath(file);
    throw new GraftError('usage', 'the recipe cannot be read', {
      place: file,
      hint: existsSync(file) ? 'Name a readable file' : near ? `Did you mean ${near}?` : 'Check the path',
      cause,
    });
  }
  const document = parseDocument(text, { lineCounter: new LineCounter() });
  const [error] = document.errors;
  if (error) {
    const at = error.linePos?.[0];
    throw new GraftError(
      'usage',
      `this is no valid YAML: ${error.message.split('\n')[0]!.replace(/ at line \d+, column \d+:$/, '')}`,
      {
        place: at ? `${file}:${at.line}:${at.col}` : file,
      },
    );
  }
  return document;
}

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
      throw new GraftError('usage', `the value of '${override}' is no YAML`, { place: '--set' });
    const given: unknown = parsed.toJS();
    const here = pathField.test(key) && typeof given === 'string';
    try {
      document.setIn(key.split('.'), here ? resolve(given) : given);
    } catch (cause) {
      throw new GraftError('usage', `a part of '${key}' is a value in the recipe, and has no fields`, {
        place: '--set',
        cause,
      });
    }
  }
  return parseRecipe(document.toJS(), file, dirname(resolve(file)));
}
