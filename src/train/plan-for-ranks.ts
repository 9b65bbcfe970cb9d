/** The plan of a recipe for processes that need not exist. */
import { freeMemory, GraftError } from '../base/index.ts';
import { resolveModel } from '../io/index.ts';
import { isInBackward } from '../optim/index.ts';
import { type ClusterPlan, clusterPlan, type PlannedRun, type Stage } from './cluster-plan.ts';
import { deepspeedNotes, withBatchOf } from './deepspeed.ts';
import { headFor } from './head.ts';
import { readExamples } from './plan.ts';
import { plannedFromShape, plannedFromSketch, shapeNamed } from './planned-model.ts';
import { type Recipe, recipesOf } from './recipe.ts';
import { openTaskModels } from './task-models.ts';
import { requireNoWholeGradients } from './whole-gradients.ts';

/** Tokens of a micro-batch where neither recipe nor machine say: those at which matrix products reach their full rate. */
const defaultMicroTokens = 1024;

/** What to plan for. */
export interface PlanOptions {
  /** Number of processes. */
  readonly ranks: number;
  /** The stage that the run shall have. Default: that of the recipe. */
  readonly zero?: Stage | undefined;
  /** A common shape instead of the recipe's model, such as llama-70b. */
  readonly shape?: string | undefined;
  /** Tokens of a row. Default: data.max_length, the most that a row can have. */
  readonly rowTokens?: number | undefined;
  /** Bytes of memory for each process. Default: what is free on this machine. */
  readonly memory?: number | undefined;
  /** Bytes a second that a process sends. Default: the time of sending is not planned. */
  readonly bandwidth?: number | undefined;
  /** Operations a second of a process. Default: the time of computing is not planned. */
  readonly flops?: number | undefined;
}

/** A plan, and what it was made for. */
export interface RanksPlan extends ClusterPlan {
  /** The stage that was asked for, or that of the recipe. */
  readonly asked: Stage;
  /** Tokens of a row. */
  readonly rowTokens: number;
  /** Tokens of a micro-batch at most. */
  readonly microTokens: number;
  /** What should be known about the recipe. */
  readonly notes: readonly string[];
}

/**
 * Returns what each process would hold, send and compute. Of a model only the list of its weights is read, of a shape nothing.
 * @throws GraftError 'usage' for what cannot be planned, and whatever is wrong with the recipe's model or methods
 */
export async function planForRanks(given: Recipe, options: PlanOptions): Promise<RanksPlan> {
  const { ranks, shape, bandwidth, flops, memory = freeMemory() } = options;
  const recipe = withBatchOf(given, ranks);
  const { train, data } = recipe;
  if (isInBackward(train.optimizer)) requireNoWholeGradients({ processes: ranks });
  const [rowTokens, microTokens] = [options.rowTokens ?? data.max_length, train.micro_tokens ?? defaultMicroTokens];
  const checkpointed = train.gradient_checkpointing ?? false;
  const run: PlannedRun = {
    ranks,
    rows: train.batch_size,
    rowTokens,
    microTokens,
    checkpointed,
    offload: train.offload,
    memory,
    bandwidth,
    flops,
  };
  const model = shape === undefined ? await planned(recipe) : plannedFromShape(recipe, shapeNamed(shape));
  const asked = options.zero ?? train.zero.stage;
  return {
    ...clusterPlan(model, run),
    asked,
    rowTokens,
    microTokens,
    notes: [...(model.notes ?? []), ...deepspeedNotes(recipe)],
  };
}

async function planned(recipe: Recipe) {
  const path = await resolveModel(recipe.model);
  const lessons = await Promise.all(
    recipesOf(recipe).map(async ([name, own]) => ({ name, head: await headOf(own, path) })),
  );
  using sketch = openTaskModels(recipe, path, lessons, true);
  return plannedFromSketch(recipe, sketch);
}

/** The head of a task; rows are read only where nothing but they have the labels. */
async function headOf(recipe: Recipe, path: string) {
  try {
    return headFor(recipe, path, []);
  } catch (error) {
    if (!(error instanceof GraftError) || error.kind !== 'input') throw error;
    const { train, eval: held = [] } = await readExamples(recipe);
    return headFor(
      recipe,
      path,
      [...train.flat(), ...held].map(({ example }) => example),
    );
  }
}
