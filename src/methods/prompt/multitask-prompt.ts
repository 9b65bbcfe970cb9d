/**
 * Multitask prompt tuning (Wang et al., arXiv 2303.02861): the prompt of task k is P ∘ (Cₖ Rₖ), a shared prompt P [T, C] multiplied
 * elementwise by a matrix of low rank r, with Cₖ [T, r] and Rₖ [r, C]. Fields and file are PEFT's (tuners/multitask_prompt_tuning).
 */
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { GraftError } from '../../base/index.ts';
import { openSafetensors } from '../../io/index.ts';
import type { PackedTokens } from '../../nn/index.ts';
import { type DType, mixSeed, noGrad, ops, scope, Tensor } from '../../tensor/index.ts';
import { type Method, ParameterInit } from '../shared/index.ts';
import { adviseHigherRate, initialVectors, promptFields, savedInitFields } from './prompt.ts';
import { requireSpace, VirtualVectors, virtualAdapter } from './virtual-tokens.ts';

const multitaskConfig = z
  .strictObject({
    ...promptFields,
    num_tasks: z.int().positive().default(1).describe('Number of tasks; each row gives its task by number, from 0.'),
    num_ranks: z.int().positive().default(1).describe('r: rank of the matrix of each task.'),
    prompt_tuning_init: z
      .enum(['RANDOM', 'TEXT', 'AVERAGE_SOURCE_TASKS', 'EXACT_SOURCE_TASK', 'ONLY_SOURCE_SHARED'])
      .default('RANDOM')
      .describe(
        'Initial values. RANDOM: normal; TEXT: the embeddings of a text; or values of a saved adapter: the mean of its tasks (AVERAGE_SOURCE_TASKS) or one of them (EXACT_SOURCE_TASK), both with num_tasks: 1, or its shared prompt only (ONLY_SOURCE_SHARED).',
      ),
    prompt_tuning_init_state_dict_path: z
      .string()
      .nullish()
      .describe('The saved adapter to begin from: its directory or its safetensors file.'),
    prompt_tuning_init_task: z.int().nonnegative().default(0).describe('Number of the task for EXACT_SOURCE_TASK.'),
  })
  .describe('A prompt that several tasks share, multiplied by a low-rank matrix of each task (arXiv 2303.02861).');

type MultitaskConfig = z.infer<typeof multitaskConfig>;

const tensorNames = ['prompt_embeddings', 'prefix_task_cols', 'prefix_task_rows'] as const;

/** Returns P, and C and R where the config asks for them, of the saved adapter to begin from. */
function sourceValues(config: MultitaskConfig): Tensor[] {
  const { prompt_tuning_init: init, prompt_tuning_init_state_dict_path: path, prompt_tuning_init_task: task } = config;
  const place = 'prompt_tuning_init_state_dict_path';
  const stats = path && statSync(path, { throwIfNoEntry: false });
  if (!stats)
    throw new GraftError('usage', `${init} needs a saved adapter, and '${path}' was not found`, {
      place,
      hint: 'Set it to the directory of a multitask-prompt adapter',
    });
  using source = openSafetensors(stats.isDirectory() ? join(path, 'adapter_model.safetensors') : path);
  const read = (name: string) => {
    const entry = source.entries.get(name);
    if (!entry) throw new GraftError('input', `the adapter to begin from has no tensor ${name}`, { place: path });
    const tensor = Tensor.empty(entry.shape, entry.format as DType);
    tensor.fillBytes((bytes) => source.read(name, bytes));
    return tensor;
  };
  if (init === 'ONLY_SOURCE_SHARED') return [read(tensorNames[0])];
  const [shared, ...factors] = tensorNames.map(read) as [Tensor, Tensor, Tensor];
  if (init === 'AVERAGE_SOURCE_TASKS') return [shared, ...factors.map((t) => ops.meanDim(t, [0], true))];
  const tasks = factors[0]!.size(0);
  if (task >= tasks) {
    const problem = `the adapter to begin from has ${tasks} tasks, and prompt_tuning_init_task is ${task}`;
    throw new GraftError('usage', problem, { place: 'prompt_tuning_init_task', hint: `Use 0 to ${tasks - 1}` });
  }
  return [shared, ...factors.map((t) => ops.narrow(t, 0, task, 1))];
}

/** Returns the task of each row. @throws GraftError 'usage' for rows without a task, or with one outside 0 to `count` − 1 */
function tasksOf({ tasks, rowStarts }: PackedTokens, count: number): readonly number[] {
  if (!tasks && count === 1) return new Array<number>(rowStarts.length - 1).fill(0);
  const invalid = tasks?.find((task) => !(Number.isInteger(task) && task >= 0 && task < count));
  if (tasks && invalid === undefined) return tasks;
  const problem = tasks ? `a row has the task ${invalid}` : 'the rows have no task number';
  throw new GraftError('usage', `${problem}, and the prompt has ${count} tasks`, {
    place: 'task',
    hint: `Add the field task, 0 to ${count - 1}, to each row, or set --task-number for rows without it`,
  });
}

export const multitaskPrompt: Method<MultitaskConfig> = {
  name: 'multitask-prompt',
  peftType: 'MULTITASK_PROMPT_TUNING',
  config: multitaskConfig,

  attach(model, config, seed, context = {}) {
    const { num_virtual_tokens: length, num_tasks: count, num_ranks: rank, prompt_tuning_init: init } = config;
    requireSpace(model, length);
    using _ = scope();
    const fromSource = init.includes('SOURCE') && !context.loading;
    const source = fromSource ? sourceValues(config) : [];
    using random = new ParameterInit(mixSeed(seed, 2));
    const shared = initialVectors(model, { ...config, init }, seed, context);
    const cols = random.normal([count, length, rank], 0.02);
    const rows = random.normal([count, rank, model.width], 0.02);
    const parameters = [shared, cols, rows];
    source.forEach((value, i) => {
      const parameter = parameters[i]!;
      if (value.shape.join() !== parameter.shape.join()) {
        for (const tensor of parameters) tensor.dispose();
        const [found, expected] = [value, parameter].map(({ shape }) => `[${shape.join(', ')}]`);
        const problem = `${tensorNames[i]} of the adapter to begin from is ${found}, and the config needs ${expected}`;
        throw new GraftError('mismatch', problem, { place: config.prompt_tuning_init_state_dict_path! });
      }
      noGrad(() => ops.copy_(parameter, value));
    });
    const vectors = new VirtualVectors([length, model.width], shared);
    /** [R·T, C] for R rows: each has the prompt of its task. */
    const promptsOf = (tokens: PackedTokens) => {
      const tasks = Tensor.from(BigInt64Array.from(tasksOf(tokens, count), BigInt));
      const factor = ops.bmm(ops.indexSelect(cols, 0, tasks), ops.indexSelect(rows, 0, tasks));
      return ops.view(ops.mul(factor, vectors.value()), [-1, model.width]);
    };
    const others = new Map([
      ['prefix_task_cols', cols],
      ['prefix_task_rows', rows],
    ]);
    const port = { prompt: { length, readsTasks: true, vectors: promptsOf } };
    const isRandom = init === 'RANDOM' && !context.loading;
    const fields = {
      advise: adviseHigherRate('prompt', isRandom, 'begin from a text (prompt_tuning_init: TEXT)'),
      // PEFT reads the source again at every load; a saved adapter has its values and needs no source.
      savedConfig: (base?: string) => ({
        ...savedInitFields(init, config, base),
        prompt_tuning_init: init.includes('SOURCE') ? 'RANDOM' : init,
        prompt_tuning_init_state_dict_path: null,
      }),
    };
    return virtualAdapter(model, 'multitask-prompt', config, vectors, port, fields, others);
  },
};
