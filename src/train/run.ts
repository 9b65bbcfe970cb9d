import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import type { Row } from '../data/index.ts';
import { currentEngine, useThreads } from '../engine/index.ts';
import { lockDirectory, resolveModel } from '../io/index.ts';
import { bestPrecision, type Precision, useGradientCheckpointing, usePrecision } from '../nn/index.ts';
import { type Optimizer, scheduleFactor } from '../optim/index.ts';
import { batchesOf } from '../tasks/index.ts';
import { optimizerFor } from './attach.ts';
import { microTokensFor } from './budget.ts';
import { lastCheckpoint, type RunState, restoreCheckpoint, saveCheckpoint } from './checkpoints.ts';
import { explained, requireFinite } from './diverged.ts';
import { EventLog, type TrainEvent } from './events.ts';
import { HeldOut } from './held-out.ts';
import { trainLoop } from './loop.ts';
import type { Recipe } from './recipe.ts';
import { type StepCost, startEvent, type TrainResult, trainResult, warningsOf } from './report.ts';
import { claimRunDirectory, save, saveResult } from './run-directory.ts';
import { trainStep } from './step.ts';
import { openTaskRuns, type TaskRun, type TaskRuns } from './task-runs.ts';

/** Milliseconds between two checkpoints, where the recipe does not give steps. */
const checkpointInterval = 60_000;

/**
 * Runs a recipe in this thread. An unfinished run of the same recipe in the run directory is resumed; what another run
 * left there is moved aside.
 * @param listen is given every event
 * @param stopRequested is asked after every step; when it says true the run ends with a checkpoint, as an 'interrupted' error
 * @throws GraftError for anything that is wrong with the recipe, the model, the data or the machine
 */
export async function runTraining(
  { recipe, fresh = false }: { readonly recipe: Recipe; readonly fresh?: boolean },
  listen: (event: TrainEvent) => void,
  stopRequested: () => boolean = () => false,
): Promise<TrainResult> {
  const { train } = recipe;
  const threads = useThreads(train.threads);
  const precision = train.precision === 'auto' ? bestPrecision() : train.precision;
  using _precision = usePrecision(precision);
  using _checkpointing = useGradientCheckpointing(train.gradient_checkpointing ?? false);
  const modelPath = await resolveModel(recipe.model);
  const { dir } = recipe.run;
  using _lock = lockDirectory(dir);
  const fingerprint = createHash('sha256')
    .update(JSON.stringify({ ...recipe, run: undefined }))
    .digest('hex')
    .slice(0, 16);

  using taskRuns = await openTaskRuns(recipe, modelPath);
  using optimizer = optimizerFor(taskRuns.adapter, taskRuns.parameters, recipe);
  // Only now: a recipe that turns out wrong leaves the directory as it is, and may begin from an adapter in it.
  const checkpoint = claimRunDirectory(dir, fingerprint, fresh);
  const log = new EventLog(dir, listen);
  if (checkpoint) restoreCheckpoint(checkpoint.path, taskRuns.parameters, optimizer);
  const from: RunState = checkpoint?.state ?? { step: 0, best: null, stale: 0, recipe: fingerprint };
  const earlier = checkpoint ? log.rewind(from.step) : [];
  currentEngine().native.trim();

  // A resumed run keeps the micro-batches that it began with, whatever memory is free now.
  const begun = earlier.find((event) => event.type === 'start')?.microTokens;
  const microTokens =
    train.micro_tokens ?? begun ?? microTokensFor(taskRuns.host, precision, train.gradient_checkpointing ?? false);
  log.emit(startEvent(taskRuns, { step: from.step, microTokens, threads, precision }));
  for (const message of warningsOf(taskRuns, recipe)) log.emit({ type: 'warning', message });
  return trainTo({ recipe, modelPath, taskRuns, optimizer, log, precision, microTokens, from, earlier, stopRequested });
}

/** A run that is ready for its next step. */
interface Run {
  readonly recipe: Recipe;
  readonly modelPath: string;
  readonly taskRuns: TaskRuns;
  readonly optimizer: Optimizer;
  readonly log: EventLog;
  readonly precision: Precision;
  readonly microTokens: number;
  /** Where the run begins or is resumed, and its events up to there. */
  readonly from: RunState;
  readonly earlier: readonly TrainEvent[];
  readonly stopRequested: () => boolean;
}

/** Takes the steps that are left, with measurements and checkpoints between them, and saves the result. */
function trainTo({
  recipe,
  modelPath,
  taskRuns,
  optimizer,
  log,
  microTokens,
  from,
  earlier,
  stopRequested,
}: Run): TrainResult {
  const { adapter, parameters, list, steps } = taskRuns;
  const { train, eval: evaluation, run } = recipe;
  const [best, checkpoints] = [join(run.dir, 'best'), join(run.dir, 'checkpoints')];
  const heldOut = new HeldOut(list, microTokens, train.batch_size, earlier);
  const evaluateEvery = evaluation.every ?? taskRuns.stepsPerEpoch;
  let state = from;
  const patienceIsOver = () => evaluation.patience !== undefined && state.stale >= evaluation.patience;
  const stoppedBefore = patienceIsOver();

  const costs: StepCost[] = [];
  let lastCheckpointAt = performance.now();
  let current: { taskRun: TaskRun; rows: readonly Row[]; lr: number } = { taskRun: list[0]!, rows: [], lr: train.lr };
  /** Runs `act`; a loss or gradient that is not finite is explained. */
  const explaining = <T>(act: () => T): T => {
    try {
      return act();
    } catch (error) {
      const { taskRun, rows, lr } = current;
      const position = { step: state.step, steps: costs.length, checkpoints };
      throw explained(error, { model: taskRun.model, parameters, rows, lr, ...position });
    }
  };

  const reason = trainLoop({
    from: state.step,
    unmeasured: state.unmeasured ?? false,
    steps: stoppedBefore ? state.step : steps,

    step(step) {
      const start = performance.now();
      const { taskRun, index } = taskRuns.taskAt(step);
      const { model, task, name, plan } = taskRun;
      const rows = plan.rowsOf(index);
      const { schedule: type, warmup_steps, warmup_ratio } = train;
      const lr = train.lr * scheduleFactor({ type, warmup_steps, warmup_ratio }, step, steps);
      current = { taskRun, rows, lr };
      adapter.beforeStep?.(step, steps);
      const batches = batchesOf(task, rows, microTokens, rows.length, model.ports.promptLength);
      const { max_grad_norm: maxGradNorm, seed } = train;
      const result = explaining(() =>
        trainStep({ model, task, parameters, optimizer, adapter, batches, lr, maxGradNorm, seed, step }),
      );
      const seconds = (performance.now() - start) / 1e3;
      state = { ...state, step: step + 1 };
      costs.push({ loss: result.loss, tokens: result.tokens, seconds });
      const epoch = (step + 1) / taskRuns.stepsPerEpoch;
      const rssMb = process.memoryUsage.rss() / 2 ** 20;
      const { handles } = currentEngine().native.memory();
      const ofTask = name !== undefined && { task: name };
      log.emit({ type: 'step', step: step + 1, ...ofTask, ...result, lr, seconds, epoch, rssMb, handles });
    },

    ...(!heldOut.isEmpty && {
      evaluate(step: number) {
        const events = explaining(() => heldOut.measure(step, stopRequested));
        state = { ...state, unmeasured: !events };
        if (!events) return 'stopped';
        const loss = heldOut.loss!;
        const better = state.best === null || loss < state.best;
        state = { ...state, best: better ? loss : state.best, stale: better ? 0 : state.stale + 1 };
        if (better && evaluation.keep === 'best') save(taskRuns, best, recipe, modelPath);
        for (const event of events) log.emit({ ...event, best: better });
        return patienceIsOver() ? 'stop' : 'continue';
      },
    }),
    stopRequested,
    evaluateNow: (step) => step % evaluateEvery === 0,

    checkpoint(step) {
      const start = performance.now();
      explaining(() => requireFinite(parameters, step));
      const path = saveCheckpoint(checkpoints, state, parameters, optimizer, run.keep_checkpoints);
      lastCheckpointAt = performance.now();
      log.emit({ type: 'checkpoint', step, path, seconds: (lastCheckpointAt - start) / 1e3 });
    },
    checkpointNow: (step) =>
      run.checkpoint_every
        ? step % run.checkpoint_every === 0
        : performance.now() - lastCheckpointAt > checkpointInterval,
  });

  if (reason === 'stopped') {
    const checkpoint = lastCheckpoint(checkpoints)!.path;
    throw new GraftError('interrupted', `stopped after step ${state.step} of ${steps}; a checkpoint was saved`, {
      place: checkpoint,
      hint: 'Run the same command again to resume',
      data: { step: state.step, checkpoint },
    });
  }
  const savedTo = join(run.dir, adapter.writes);
  const keepsBest = state.best !== null && evaluation.keep === 'best';
  saveResult(savedTo, keepsBest ? best : undefined, (to) => save(taskRuns, to, recipe, modelPath));
  log.emit({ type: 'end', step: state.step, reason: stoppedBefore ? 'early-stop' : reason, adapter: savedTo });
  return trainResult(taskRuns, heldOut, { savedTo, earlier, costs, resumedFrom: from.step });
}
