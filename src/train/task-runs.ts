/** The tasks of a run: one, or several that share everything but their heads. */
import { setImmediate } from 'node:timers/promises';
import type { Group } from '../distributed/index.ts';
import type { AttachedAdapter } from '../methods/index.ts';
import { type HeadOptions, LaterWeights, requireRoomFor } from '../models/index.ts';
import type { Model, Precision } from '../nn/index.ts';
import { isDivisible } from '../optim/index.ts';
import { type Task, taskOf } from '../tasks/index.ts';
import type { Tensor } from '../tensor/index.ts';
import type { GatheredParts } from './gathered-blocks.ts';
import { headFor, taskOptions } from './head.ts';
import { largestBatch, planMemory, type RunMemory } from './memory-plan.ts';
import type { Offload } from './offload.ts';
import { type Examples, type Plan, planRows, readExamples } from './plan.ts';
import { type Recipe, recipesOf } from './recipe.ts';
import { shareOut } from './shared-out.ts';
import { openTaskModels, type TaskModels } from './task-models.ts';
import { taskSchedule } from './task-schedule.ts';

/** A task with its model, its rows, and its share of the steps. */
export interface TaskRun {
  /** Undefined where the run has one task only. */
  readonly name: string | undefined;
  readonly model: Model;
  /** The head's parameters by key; empty where the task has no head of its own. */
  readonly head: ReadonlyMap<string, Tensor>;
  readonly task: Task;
  readonly plan: Plan;
  /** Share of the steps; the shares of all tasks add up to 1. */
  readonly share: number;
}

export interface TaskRuns extends Disposable {
  readonly list: readonly TaskRun[];
  /** The adapter that they share, attached to `host`, one of their models. */
  readonly adapter: AttachedAdapter;
  readonly host: Model;
  /** All trained parameters, by the keys of a checkpoint. */
  readonly parameters: ReadonlyMap<string, Tensor>;
  /** How the weights are shared out among the processes; undefined: each has them all. */
  readonly gathered: GatheredParts | undefined;
  /** Whether each process had all weights at the start, though they are shared out. */
  readonly readsBase: boolean;
  /** Bytes of the base's weights as they are held in memory, and how many numbers they are. */
  readonly weightBytes: number;
  readonly parameterCount: number;
  /** What the run takes in memory, and the tokens of its micro-batches, as planned before anything was loaded. */
  readonly memory: RunMemory;
  readonly microTokens: number;
  /** Optimizer steps that the recipe gives. */
  readonly steps: number;
  readonly stepsPerEpoch: number;
  /** The task that step number `step` (0-based) is for, and how many steps of that task came before. */
  taskAt(step: number): { readonly taskRun: TaskRun; readonly index: number };
}

/** What `openTaskRuns` needs to know besides the recipe. */
export interface TaskRunOptions {
  readonly precision: Precision;
  /** Tokens of a micro-batch, where an earlier process of the run chose them. */
  readonly microTokens: number | undefined;
  /** Processes of the run. */
  readonly processes: number;
  /** Those on this machine, which share its memory. */
  readonly sharers: number;
  /** The processes that share out the weights. Default: each has them all. */
  readonly sharedBy?: Group | undefined;
  /** What is on the disk instead of in memory. */
  readonly offload: Pick<Offload, 'dir' | 'weights'>;
  /** Is told what the run will take in memory, before anything is loaded. */
  announce(memory: RunMemory): void;
}

/** A task of a recipe with its examples, and the head that they need. */
export interface Lesson {
  readonly name: string | undefined;
  readonly recipe: Recipe;
  readonly examples: Examples;
  readonly head: HeadOptions;
}

/** Reads the rows of each task of a recipe. @throws GraftError for what is wrong with the data */
export async function readLessons(recipe: Recipe, modelPath: string): Promise<Lesson[]> {
  const lessons: Lesson[] = [];
  for (const [i, [name, own]] of recipesOf(recipe).entries()) {
    const examples = await readExamples(own, recipe.tasks && i);
    const all = [...examples.train.flat(), ...(examples.eval ?? [])].map(({ example }) => example);
    lessons.push({ name, recipe: own, examples, head: headFor(own, modelPath, all) });
  }
  return lessons;
}

/** Makes the rows of each task. @param sketch models with the shapes of those that learn from them */
export async function plansOf(lessons: readonly Lesson[], sketch: TaskModels, modelPath: string): Promise<Plan[]> {
  const plans: Plan[] = [];
  for (const [i, { recipe, examples }] of lessons.entries()) {
    const model = sketch.models[i]!;
    plans.push(await planRows(recipe, model, modelPath, taskOf(model.task), examples));
  }
  return plans;
}

/**
 * Loads the model with a head for each task of the recipe, attaches the methods and makes the rows.
 * @throws GraftError for anything that is wrong with the recipe, the model or the data
 */
export async function openTaskRuns(recipe: Recipe, modelPath: string, options: TaskRunOptions): Promise<TaskRuns> {
  const { train, tasks } = recipe;
  const lessons = await readLessons(recipe, modelPath);
  const processBytes = process.memoryUsage.rss();
  const { sharedBy } = options;
  const { weights: file, dir } = options.offload;
  requireRoomFor(
    modelPath,
    recipe.quantize,
    options.sharers / (sharedBy?.size ?? 1),
    file && { dir, isShared: sharedBy !== undefined },
  );
  // Rows and memory need the models' shapes only: what is wrong is said before a large model is loaded.
  using sketch = openTaskModels(recipe, modelPath, lessons, true);
  const plans = await plansOf(lessons, sketch, modelPath);
  const weighed = Object.values(tasks ?? {}).some(({ weight }) => weight !== undefined);
  const weights = plans.map(({ stepsPerEpoch }, i) =>
    weighed ? (Object.values(tasks!)[i]!.weight ?? 1) : stepsPerEpoch,
  );
  const sum = weights.reduce((a, b) => a + b);
  const stepsPerEpoch = plans.reduce((steps, plan) => steps + plan.stepsPerEpoch, 0);
  const steps = train.steps ?? Math.max(1, Math.round(stepsPerEpoch * train.epochs));
  const listOf = ({ models, heads }: TaskModels) =>
    lessons.map(({ name, recipe }, i): TaskRun => {
      const [model, plan] = [models[i]!, plans[i]!];
      const task = taskOf(model.task, taskOptions(recipe, model.task, plan.trainRows));
      return { name, model, head: heads.get(model)!, task, plan, share: weights[i]! / sum };
    });
  const { precision, microTokens: begun, processes, sharers } = options;
  const before = { process: processBytes, precision, microTokens: begun, processes, sharers, steps };
  const { microTokens, memory } = planMemory(recipe, sketch, before, (most) =>
    listOf(sketch).map((taskRun) => largestBatch(taskRun, most)),
  );
  options.announce(memory);

  using made = new DisposableStack();
  using later = sharedBy && new LaterWeights();
  const opened = made.use(openTaskModels(recipe, modelPath, lessons, false, later, file));
  const gathered = sharedBy && later && shareOut(sharedBy, opened, later, isDivisible(train.optimizer), file);
  await setImmediate(); // frees the buffers that weights were read into
  const { models, host, adapter, parameters, weightBytes, readsBase } = opened;
  const list = listOf(opened);
  const schedule = taskSchedule(list.map(({ share }) => share));
  const all = made.move();
  return {
    list,
    adapter,
    host,
    parameters,
    gathered,
    readsBase,
    weightBytes,
    memory,
    microTokens,
    parameterCount: Math.max(...models.map((model) => model.parameters)),
    steps,
    stepsPerEpoch,
    taskAt(step) {
      const { task, index } = schedule(step);
      return { taskRun: list[task]!, index };
    },
    [Symbol.dispose]: () => all.dispose(),
  };
}
