import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import type { Row } from '../data/index.ts';
import { currentEngine, useThreads } from '../engine/index.ts';
import { lockDirectory, resolveModel } from '../io/index.ts';
import { bestPrecision, type Precision, useGradientCheckpointing, usePrecision } from '../nn/index.ts';
import { type Optimizer, scheduleFactor } from '../optim/index.ts';
import { batchesOf, type EvalResult, type Metric, measure } from '../tasks/index.ts';
import { keepsHead, optimizerFor } from './attach.ts';
import { microTokensFor } from './budget.ts';
import { lastCheckpoint, type RunState, restoreCheckpoint, saveCheckpoint } from './checkpoints.ts';
import { explained, requireFinite } from './diverged.ts';
import { EventLog, type TrainEvent } from './events.ts';
import { claimRunDirectory, save, saveResult } from './handover.ts';
import { trainLoop } from './loop.ts';
import type { Recipe } from './recipe.ts';
import { type MicroBatch, trainStep } from './step.ts';
import { openTaskRuns, type TaskRun, type TaskRuns } from './task-runs.ts';

/** What came of one task: a measurement on its held-out rows, the last, and where its adapter is. */
export interface TaskResult {
  readonly adapter: string;
  readonly eval_loss: number | null;
  readonly eval_metrics: readonly Metric[];
}

/** What `graft train --json` prints last. */
export interface TrainResult {
  /** Mean loss of every step of the run: in nats a predicted token, or as the task has it. */
  readonly losses: number[];
  /** Of all steps that this process did. */
  readonly seconds: number;
  /** Tokens (predicted or not) a second over those steps, the first left out. */
  readonly tokens_per_s: number;
  readonly peak_rss_mb: number;
  /** Where the trained adapter (for `method: full` the model, of several tasks the folder of their adapters) is. */
  readonly adapter: string;
  /** Of the last measurement on held-out rows; of several tasks the mean of their losses by their shares of the steps. */
  readonly eval_loss: number | null;
  /** Of several tasks none: they are with each. */
  readonly eval_metrics: readonly Metric[];
  /** Of several, by name. */
  readonly tasks?: Readonly<Record<string, TaskResult>>;
  readonly resumed_from: number;
}

/**
 * Runs a recipe in this thread. A run directory that holds an unfinished run of the same recipe is gone on with; what
 * another run left there is moved aside.
 * @param stopNow asked after every step; when true the run ends with a checkpoint, as an 'interrupted' error
 * @throws GraftError for anything that is wrong with the recipe, the model, the data or the machine
 */
export async function runTraining(
  { recipe, fresh = false }: { recipe: Recipe; fresh?: boolean },
  listen: (event: TrainEvent) => void,
  stopNow: () => boolean = () => false,
): Promise<TrainResult> {
  const threads = useThreads(recipe.train.threads);
  const precision = recipe.train.precision === 'auto' ? bestPrecision() : recipe.train.precision;
  using _precision = usePrecision(precision);
  using _checkpointing = useGradientCheckpointing(recipe.train.gradient_checkpointing ?? false);
  const modelPath = await resolveModel(recipe.model);
  const { dir } = recipe.run;
  using _lock = lockDirectory(dir);
  const fingerprint = createHash('sha256')
    .update(JSON.stringify({ ...recipe, run: undefined }))
    .digest('hex')
    .slice(0, 16);

  using courses = await openTaskRuns(recipe, modelPath);
  using optimizer = optimizerFor(courses.adapter, courses.parameters, recipe);
  // Only now: a recipe that turns out wrong leaves the directory as it is, and may begin from an adapter in it.
  const found = claimRunDirectory(dir, fingerprint, fresh);
  const log = new EventLog(dir, listen);
  if (found) restoreCheckpoint(found.path, courses.parameters, optimizer);
  const from: RunState = found?.state ?? { step: 0, best: null, stale: 0, recipe: fingerprint };
  const earlier = found ? log.rewind(from.step) : [];
  currentEngine().native.trim();
  return run(courses, { recipe, modelPath, optimizer, log, threads, precision, from, earlier, stopNow });
}

interface Run {
  readonly recipe: Recipe;
  readonly modelPath: string;
  readonly optimizer: Optimizer;
  readonly log: EventLog;
  readonly threads: number;
  readonly precision: Precision;
  /** What the run goes on from, and its events up to there. */
  readonly from: RunState;
  readonly earlier: readonly TrainEvent[];
  readonly stopNow: () => boolean;
}

function run(courses: TaskRuns, given: Run): TrainResult {
  const { recipe, modelPath, optimizer, log, from, earlier } = given;
  const { adapter, parameters, list, steps } = courses;
  const { train, eval: evaluation } = recipe;
  const { dir } = recipe.run;
  // Gone on with, a run keeps the cut that it began with, whatever memory is free now.
  const begun = earlier.find((e) => e.type === 'start')?.microTokens;
  const budget =
    train.micro_tokens ?? begun ?? microTokensFor(courses.host, given.precision, train.gradient_checkpointing ?? false);
  const cut = ({ task, model }: TaskRun, rows: readonly Row[], together = rows.length): MicroBatch[] =>
    batchesOf(task, rows, budget, together, model.ports.promptLength);
  const held = list
    .filter(({ plan }) => plan.heldOut.length > 0)
    .map((course) => ({ course, batches: cut(course, course.plan.heldOut, train.batch_size) }));
  const evaluateEvery = evaluation.every ?? courses.stepsPerEpoch;
  const [best, checkpoints] = [join(dir, 'best'), join(dir, 'checkpoints')];
  let state = from;
  /** The last measurement of each task. */
  const said = new Map<TaskRun, Pick<EvalResult, 'loss' | 'metrics'>>();
  for (const course of list) {
    const event = earlier.findLast((e) => e.type === 'eval' && e.task === course.name);
    if (event?.type === 'eval') said.set(course, event);
  }
  const enough = () => evaluation.patience !== undefined && state.stale >= evaluation.patience;
  const stopped = enough();
  let saved = performance.now();
  announce(courses, given, budget);

  const done: { loss: number; tokens: number; seconds: number }[] = [];
  let last: { course: TaskRun; rows: readonly Row[]; lr: number } = { course: list[0]!, rows: [], lr: train.lr };
  const withCause = <T>(act: () => T): T => {
    try {
      return act();
    } catch (error) {
      const { course, rows, lr } = last;
      const at = { step: state.step, steps: done.length, checkpoints };
      throw explained(error, { model: course.model, parameters, rows, lr, ...at });
    }
  };
  const reason = trainLoop({
    from: state.step,
    steps: stopped ? state.step : steps,

    step(step) {
      const start = performance.now();
      const { course, index } = courses.taskAt(step);
      const { model, task, name } = course;
      const rows = course.plan.rowsOf(index);
      const { schedule: type, warmup_steps, warmup_ratio } = train;
      const lr = train.lr * scheduleFactor({ type, warmup_steps, warmup_ratio }, step, steps);
      last = { course, rows, lr };
      adapter.beforeStep?.(step, steps);
      const result = withCause(() =>
        trainStep({
          model,
          task,
          parameters,
          optimizer,
          adapter,
          batches: cut(course, rows),
          lr,
          maxGradNorm: train.max_grad_norm,
          seed: train.seed,
          step,
        }),
      );
      const seconds = (performance.now() - start) / 1e3;
      state = { ...state, step: step + 1 };
      done.push({ loss: result.loss, tokens: result.tokens, seconds });
      const epoch = (step + 1) / courses.stepsPerEpoch;
      const rssMb = process.memoryUsage.rss() / 2 ** 20;
      const { handles } = currentEngine().native.memory();
      const of = name !== undefined && { task: name };
      log.emit({ type: 'step', step: step + 1, ...of, ...result, lr, seconds, epoch, rssMb, handles });
    },

    ...(held.length > 0 && {
      evaluate(step: number) {
        const events = held.map(({ course, batches }) => {
          const start = performance.now();
          const { name, model, task, plan } = course;
          const { loss, metrics, units } = withCause(() => measure(model, task, batches, plan.heldOut));
          said.set(course, { loss, metrics });
          const of = name !== undefined && { task: name };
          return { ...of, loss, tokens: units, metrics, seconds: (performance.now() - start) / 1e3 };
        });
        const loss = meanLoss(said)!;
        const better = state.best === null || loss < state.best;
        state = { ...state, best: better ? loss : state.best, stale: better ? 0 : state.stale + 1 };
        if (better && evaluation.keep === 'best') save(courses, best, recipe, modelPath);
        for (const event of events) log.emit({ type: 'eval', step, ...event, best: better });
        return enough() ? 'stop' : 'go on';
      },
    }),
    stopNow: given.stopNow,
    evaluateNow: (step) => step % evaluateEvery === 0,

    checkpoint(step) {
      const start = performance.now();
      withCause(() => requireFinite(parameters, step));
      const path = saveCheckpoint(checkpoints, state, parameters, optimizer, recipe.run.keep_checkpoints);
      saved = performance.now();
      log.emit({ type: 'checkpoint', step, path, seconds: (saved - start) / 1e3 });
    },
    checkpointNow: (step) =>
      recipe.run.checkpoint_every ? step % recipe.run.checkpoint_every === 0 : performance.now() - saved > 60_000,
  });

  if (reason === 'stopped') {
    const checkpoint = lastCheckpoint(checkpoints)!.path;
    throw new GraftError('interrupted', `stopped after step ${state.step} of ${steps}, with a checkpoint`, {
      place: checkpoint,
      hint: 'Run the same command again to go on from there',
      data: { step: state.step, checkpoint },
    });
  }

  const handed = join(dir, adapter.writes);
  const chosen = state.best !== null && evaluation.keep === 'best';
  saveResult(handed, chosen ? best : undefined, (to) => save(courses, to, recipe, modelPath));
  log.emit({ type: 'end', step: state.step, reason: stopped ? 'early-stop' : reason, adapter: handed });
  const timed = done.length > 1 ? done.slice(1) : done;
  const sum = (of: (d: (typeof done)[number]) => number, over = done) => over.reduce((a, d) => a + of(d), 0);
  const results = list.map((course): TaskResult => {
    const { loss, metrics } = said.get(course) ?? { loss: null, metrics: [] };
    return { adapter: join(handed, course.name ?? ''), eval_loss: loss, eval_metrics: metrics };
  });
  return {
    losses: [...earlier.flatMap((e) => (e.type === 'step' ? [e.loss] : [])), ...done.map((d) => d.loss)],
    seconds: sum((d) => d.seconds),
    tokens_per_s: sum((d) => d.tokens, timed) / sum((d) => d.seconds, timed) || 0,
    peak_rss_mb: process.resourceUsage().maxRSS / 1024,
    adapter: handed,
    eval_loss: meanLoss(said),
    eval_metrics: recipe.tasks ? [] : results[0]!.eval_metrics,
    ...(recipe.tasks && { tasks: Object.fromEntries(list.map(({ name }, i) => [name!, results[i]!])) }),
    resumed_from: from.step,
  };
}

/** The mean of the tasks' losses by their shares of the steps, which is what the steps make less; null: none was measured. */
function meanLoss(said: ReadonlyMap<TaskRun, { readonly loss: number }>): number | null {
  const measured = [...said];
  if (measured.length <= 1) return measured[0]?.[1].loss ?? null;
  const shares = measured.reduce((sum, [{ share }]) => sum + share, 0);
  return measured.reduce((sum, [{ share }, { loss }]) => sum + share * loss, 0) / shares;
}

/** The first events of a run: what it learns, and what speaks against it. */
function announce({ list, adapter, host, parameters, ...courses }: TaskRuns, given: Run, microTokens: number): void {
  const { recipe, log, threads, precision, from } = given;
  const counts = list.map(({ plan, share }) => ({ rows: plan.rows, heldOut: plan.heldOut.length, share }));
  const sum = (numbers: Iterable<number>) => [...numbers].reduce((a, b) => a + b, 0);
  log.emit({
    type: 'start',
    step: from.step,
    steps: courses.steps,
    rows: sum(counts.map(({ rows }) => rows)),
    heldOut: sum(counts.map(({ heldOut }) => heldOut)),
    trainable: sum(parameters.values().map(({ numel }) => numel)),
    parameters: courses.parameterCount,
    weightBytes: courses.weightBytes,
    microTokens,
    threads,
    precision,
    ...(recipe.tasks && { tasks: Object.fromEntries(list.map(({ name }, i) => [name!, counts[i]!])) }),
  });
  const advice = [...(adapter.advise?.(recipe.train.lr) ?? [])];
  if (recipe.adapter && !keepsHead(host, recipe)) {
    const why = recipe.tasks ? 'no part of what the tasks share' : 'for another task';
    const own = recipe.tasks ? 'each of them begins with a new one' : 'the model keeps its own';
    advice.push(`the head of ${recipe.adapter} is ${why}: ${own}`);
  }
  const warnings = list.flatMap(({ plan }) => plan.warnings);
  for (const message of [...adapter.warnings, ...advice, ...warnings]) log.emit({ type: 'warning', message });
}
