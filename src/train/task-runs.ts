/** The tasks of a run: one, or several that share everything but their heads. */
import { GraftError } from '../base/index.ts';
import { type AttachedAdapter, trainHead } from '../methods/index.ts';
import { loadModels } from '../models/index.ts';
import { type Model, namedModules, tensorBytes } from '../nn/index.ts';
import { type Task, taskOf } from '../tasks/index.ts';
import type { Tensor } from '../tensor/index.ts';
import { attach } from './attach.ts';
import { headFor, taskOptions } from './head.ts';
import { type Plan, planRows, readExamples } from './plan.ts';
import { type Recipe, recipesOf } from './recipe.ts';
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
  /** Bytes of the base's weights as they are held in memory, and how many numbers they are. */
  readonly weightBytes: number;
  readonly parameterCount: number;
  /** Optimizer steps that the recipe gives. */
  readonly steps: number;
  readonly stepsPerEpoch: number;
  /** The task that step number `step` (0-based) is for, and how many steps of that task came before. */
  taskAt(step: number): { readonly taskRun: TaskRun; readonly index: number };
}

/**
 * Loads the model with a head for each task of the recipe, attaches the methods and makes the rows.
 * @throws GraftError for anything that is wrong with the recipe, the model or the data
 */
export async function openTaskRuns(recipe: Recipe, modelPath: string): Promise<TaskRuns> {
  const { train, tasks } = recipe;
  const lessons = [];
  for (const [i, [name, own]] of recipesOf(recipe).entries()) {
    const examples = await readExamples(own, tasks && i);
    const all = [...examples.train.flat(), ...(examples.eval ?? [])].map(({ example }) => example);
    lessons.push({ name, recipe: own, examples, head: headFor(own, modelPath, all) });
  }

  using made = new DisposableStack();
  const heads = lessons.map(({ head }) => head);
  const models = loadModels(modelPath, heads, { quantize: recipe.quantize, seed: train.seed });
  made.use(models[0]!);
  const host = hostOf(models);
  const weightBytes = tensorBytes(...models.map(({ root }) => root));
  const adapter = made.use(attach(host, modelPath, recipe));
  if (adapter.parameters.size === 0) {
    throw new GraftError('usage', 'there is nothing to train: every method is frozen', {
      place: 'method',
      hint: 'Remove train: false from one method, or give the recipe a task with a head',
    });
  }

  const parameters = new Map(adapter.parameters);
  const own = new Map<Model, ReadonlyMap<string, Tensor>>([[host, adapter.head]]);
  for (const [i, model] of models.entries()) {
    if (own.has(model)) continue;
    const head = trainHead(model);
    if (head) made.defer(() => head.dispose());
    own.set(model, head?.parameters ?? new Map());
    for (const [key, tensor] of own.get(model)!) parameters.set(`tasks.${lessons[i]!.name}.${key}`, tensor);
  }

  const plans: Plan[] = [];
  for (const [i, { recipe, examples }] of lessons.entries()) {
    plans.push(await planRows(recipe, models[i]!, modelPath, taskOf(models[i]!.task), examples));
  }
  const weighed = Object.values(tasks ?? {}).some(({ weight }) => weight !== undefined);
  const weights = plans.map(({ stepsPerEpoch }, i) =>
    weighed ? (Object.values(tasks!)[i]!.weight ?? 1) : stepsPerEpoch,
  );
  const sum = weights.reduce((a, b) => a + b);
  const list = lessons.map(({ name, recipe }, i): TaskRun => {
    const [model, plan] = [models[i]!, plans[i]!];
    const task = taskOf(model.task, taskOptions(recipe, model.task, plan.trainRows));
    return { name, model, head: own.get(model)!, task, plan, share: weights[i]! / sum };
  });
  const stepsPerEpoch = plans.reduce((steps, plan) => steps + plan.stepsPerEpoch, 0);
  const steps = train.steps ?? Math.max(1, Math.round(stepsPerEpoch * train.epochs));
  const schedule = taskSchedule(list.map(({ share }) => share));
  const all = made.move();
  return {
    list,
    adapter,
    host,
    parameters,
    weightBytes,
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

/**
 * The model that the methods are attached to: the one with every module that the others have. Modules that only it has (BERT's pooler,
 * the projection to the vocabulary) are trained by its task alone.
 * @throws GraftError 'usage' where the tasks' models name the shared layers differently
 */
function hostOf(models: readonly Model[]): Model {
  const [first] = models as [Model];
  const other = models.find(({ sites }) => sites.block !== first.sites.block);
  if (other) {
    const [one, two] = [first, other].map(({ task, sites }) => `${task.name} as ${sites.block}`);
    throw new GraftError(
      'usage',
      `these tasks cannot share an adapter: ${first.family} names its layers differently for ${one} and ${two}`,
      {
        place: 'tasks',
        hint: 'Train them in two runs',
      },
    );
  }
  const size = ({ root, task, sites: { head } }: Model) =>
    [...namedModules(root)].filter(([path]) => task.labels.length === 0 || !path.startsWith(head!)).length;
  return models.reduce((most, model) => (size(model) > size(most) ? model : most));
}
