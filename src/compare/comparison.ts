/** What a comparison is: a recipe without a method, and the methods that are to learn from it under the same budget. */
import { dirname, resolve } from 'node:path';
import { z } from 'zod';
import { GraftError, parseWith } from '../base/index.ts';
import { parseRecipe, type Recipe, readYaml } from '../train/index.ts';

/** A method to compare, with the learning rate that it needs. */
export interface Contender {
  readonly method: unknown;
  /** Fields of `train` in the place of the recipe's. */
  readonly train?: Readonly<Record<string, unknown>>;
}

/**
 * The methods with settings that learn on small models. Learning rates differ by their nature: a few numbers that are
 * multiplied in need larger steps than whole matrices (training.md §3.2 of the references; tried on the e-mails).
 */
export const contenders: Readonly<Record<string, Contender>> = {
  full: { method: { type: 'full' }, train: { lr: 1e-4 } },
  lora: { method: { type: 'lora', r: 8, lora_alpha: 16, target_modules: 'all-linear' }, train: { lr: 1e-3 } },
  dora: {
    method: { type: 'lora', r: 8, lora_alpha: 16, target_modules: 'all-linear', use_dora: true },
    train: { lr: 1e-3 },
  },
  adalora: {
    method: { type: 'adalora', init_r: 12, target_r: 8, target_modules: 'all-linear' },
    train: { lr: 2e-3 },
  },
  ia3: { method: { type: 'ia3' }, train: { lr: 1e-2 } },
  'seq-bn': { method: { type: 'bottleneck', config: 'seq_bn' }, train: { lr: 1e-3 } },
  'double-seq-bn': { method: { type: 'bottleneck', config: 'double_seq_bn' }, train: { lr: 1e-3 } },
  'par-bn': { method: { type: 'bottleneck', config: 'par_bn', reduction_factor: 16 }, train: { lr: 1e-3 } },
  compacter: { method: { type: 'bottleneck', config: 'compacter' }, train: { lr: 3e-3 } },
  prefix: { method: { type: 'prefix', num_virtual_tokens: 20 }, train: { lr: 1e-2 } },
  prompt: {
    method: { type: 'prompt', num_virtual_tokens: 20, prompt_tuning_init: 'SAMPLE_VOCAB' },
    train: { lr: 3e-2 },
  },
  'p-tuning': { method: { type: 'p-tuning', num_virtual_tokens: 20, encoder_hidden_size: 128 }, train: { lr: 3e-3 } },
};

/** The field `compare`. */
export const compareSchema = z.strictObject({
  answers: z
    .array(z.string())
    .min(2)
    .optional()
    .describe('causal-lm: rows are answered with one of these; accuracy is how often the likeliest is right.'),
  methods: z
    .record(z.string(), z.strictObject({ method: z.unknown(), train: z.record(z.string(), z.unknown()).optional() }))
    .optional()
    .describe('Methods by a name of yours, each with fields of train in the place of the common ones. Default: all.'),
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
      mend: 'Name the methods under compare.methods, or leave them out to compare all',
    });
  }
  const { answers, methods, only, metric, loss } = parseWith(compareSchema, compare, place);
  const chosen = Object.entries({ ...(methods ?? contenders) } as Record<string, Contender>).filter(
    ([name]) => !only || only.includes(name),
  );
  if (chosen.length === 0) {
    const names = Object.keys(methods ?? contenders).join(', ');
    throw new GraftError('usage', 'no method is left to compare', { place, mend: `There are ${names}` });
  }
  const base = dirname(resolve(file));
  const dir = (run as { dir?: string } | undefined)?.dir;
  if (!dir) throw new GraftError('usage', 'run.dir is missing', { place: file });
  const recipes = chosen.map(([name, contender]): [string, Recipe] => {
    const recipe = {
      ...rest,
      method: contender.method,
      train: { ...(train as object), ...contender.train },
      run: { ...(run as object), dir: resolve(base, dir, name) },
    };
    return [name, parseRecipe(recipe, `${file}, ${name}`, base)];
  });
  if (!recipes[0]![1].data.eval) {
    throw new GraftError('usage', 'a comparison measures on a file of its own', {
      place: file,
      mend: 'Name it as data.eval',
    });
  }
  return {
    title: `${rest.model}, ${(rest.data as { train?: string } | undefined)?.train}`,
    dir: resolve(base, dir),
    contenders: new Map(recipes),
    answers,
    metric,
    loss,
  };
}
