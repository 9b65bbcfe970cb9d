/**
 * Multitask prompt tuning (Wang et al., arXiv 2303.02861): the prompt of task k is P ∘ (Cₖ Rₖ), a shared P [T, C] times a
 * matrix of low rank r, Cₖ [T, r] and Rₖ [r, C]. Fields and file are PEFT's (tuners/multitask_prompt_tuning).
 */
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { GraftError } from '../../base/index.ts';
import { openSafetensors } from '../../io/index.ts';
import type { PackedTokens } from '../../nn/index.ts';
import { type DType, mixSeed, noGrad, ops, scope, Tensor } from '../../tensor/index.ts';
import { type Method, ParameterInit } from '../shared/index.ts';
import { firstVectors, promptFields, savedStart, slowStart } from './prompt.ts';
import { requireSpace, Vectors, virtualAdapter } from './virtual-tokens.ts';

const multitaskConfig = z
  .strictObject({
    ...promptFields,
    num_tasks: z.int().positive().default(1).describe('Tasks; each row says its own by number, from 0.'),
    num_ranks: z.int().positive().default(1).describe('r: rank of what a task multiplies the shared prompt with.'),
    prompt_tuning_init: z
      .enum(['RANDOM', 'TEXT', 'AVERAGE_SOURCE_TASKS', 'EXACT_SOURCE_TASK', 'ONLY_SOURCE_SHARED'])
      .default('RANDOM')
      .describe(
        'First values: normal numbers, a text’s vectors, or a saved adapter’s: mean of its tasks, one of its tasks (both: num_tasks 1), or its shared prompt only.',
      ),
    prompt_tuning_init_state_dict_path: z
      .string()
      .nullish()
      .describe('The saved adapter to begin from: its directory or its safetensors file.'),
    prompt_tuning_init_task: z.int().nonnegative().default(0).describe('The task of EXACT_SOURCE_TASK.'),
  })
  .describe('One shared prompt, and for each task a matrix of low rank that it is multiplied with (arXiv 2303.02861).');

type MultitaskConfig = z.infer<typeof multitaskConfig>;

const names = ['prompt_embeddings', 'prefix_task_cols', 'prefix_task_rows'] as const;

/** Values of a saved adapter, as the config asks for them. */
function sourceValues(config: MultitaskConfig): Tensor[] {
  const { prompt_tuning_init: init, prompt_tuning_init_state_dict_path: path, prompt_tuning_init_task: task } = config;
  const place = 'prompt_tuning_init_state_dict_path';
  const found = path && statSync(path, { throwIfNoEntry: false });
  if (!found)
    throw new GraftError('usage', `${init} needs a saved adapter, and there is none at '${path}'`, {
      place,
      hint: 'Name the directory of a multitask-prompt adapter',
    });
  using source = openSafetensors(found.isDirectory() ? join(path, 'adapter_model.safetensors') : path);
  const read = (name: string) => {
    const entry = source.entries.get(name);
    if (!entry) throw new GraftError('input', `the adapter to begin from has no ${name}`, { place: path });
    const tensor = Tensor.empty(entry.shape, entry.format as DType);
    source.read(name, tensor.memory());
    return tensor;
  };
  if (init === 'ONLY_SOURCE_SHARED') return [read(names[0])];
  const [shared, ...tasks] = names.map(read) as [Tensor, Tensor, Tensor];
  if (init === 'AVERAGE_SOURCE_TASKS') return [shared, ...tasks.map((t) => ops.meanDim(t, [0], true))];
  if (task >= tasks[0]!.size(0)) {
    const problem = `the adapter to begin from has ${tasks[0]!.size(0)} tasks, and prompt_tuning_init_task is ${task}`;
    throw new GraftError('usage', problem, { place: 'prompt_tuning_init_task' });
  }
  return [shared, ...tasks.map((t) => ops.narrow(t, 0, task, 1))];
}

/** @throws GraftError 'usage' for rows without a task's number, or with one that is none */
function tasksOf({ tasks, rowStarts }: PackedTokens, count: number): readonly number[] {
  if (!tasks && count === 1) return new Array<number>(rowStarts.length - 1).fill(0);
  const alien = tasks?.find((task) => !(Number.isInteger(task) && task >= 0 && task < count));
  if (tasks && alien === undefined) return tasks;
  const problem = tasks ? `a row is of task ${alien}` : 'the rows do not say which task they are of';
  throw new GraftError('usage', `${problem}, and the prompt has ${count} tasks`, {
    place: 'task',
    hint: `Give each row its task, 0 to ${count - 1}, or --task-number for all that do not say`,
  });
}

export const multitaskPrompt: Method<MultitaskConfig> = {
  name: 'multitask-prompt',
  peftType: 'MULTITASK_PROMPT_TUNING',
  config: multitaskConfig,

  attach(model, config, seed, tools = {}) {
    const { num_virtual_tokens: length, num_tasks: count, num_ranks: rank, prompt_tuning_init: init } = config;
    requireSpace(model, length);
    using _ = scope();
    const fromSource = init.includes('SOURCE') && !tools.loading;
    const source = fromSource ? sourceValues(config) : [];
    using draws = new ParameterInit(mixSeed(seed, 2));
    const shared = firstVectors(model, { ...config, init }, seed, tools);
    const cols = draws.normal([count, length, rank], 0.02);
    const rows = draws.normal([count, rank, model.width], 0.02);
    [shared, cols, rows].forEach((parameter, i) => {
      const value = source[i];
      if (!value) return;
      if (value.shape.join() !== parameter.shape.join()) {
        for (const made of [shared, cols, rows]) made.dispose();
        const asked = `[${parameter.shape.join(', ')}]`;
        throw new GraftError('mismatch', `${names[i]} to begin from is [${value.shape.join(', ')}], not ${asked}`, {
          place: config.prompt_tuning_init_state_dict_path!,
        });
      }
      noGrad(() => ops.copy_(parameter, value));
    });
    const vectors = new Vectors([length, model.width], shared);
    const ofRows = (tokens: PackedTokens) => {
      const tasks = Tensor.from(BigInt64Array.from(tasksOf(tokens, count), BigInt));
      const factor = ops.bmm(ops.indexSelect(cols, 0, tasks), ops.indexSelect(rows, 0, tasks));
      return ops.view(ops.mul(factor, vectors.value()), [-1, model.width]);
    };
    const others = new Map([
      ['prefix_task_cols', cols],
      ['prefix_task_rows', rows],
    ]);
    const port = { prompt: { length, vectors: ofRows } };
    const rest = {
      advise: slowStart('prompt', init === 'RANDOM' && !tools.loading, 'begin from a text (prompt_tuning_init: TEXT)'),
      // PEFT reads the source again whenever it loads; the values here need none.
      savedConfig: (base?: string) => ({
        ...savedStart(init, config, base),
        prompt_tuning_init: init.includes('SOURCE') ? 'RANDOM' : init,
        prompt_tuning_init_state_dict_path: null,
      }),
    };
    return virtualAdapter(model, 'multitask-prompt', config, vectors, port, rest, others);
  },
};
