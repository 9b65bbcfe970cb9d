import { join } from 'node:path';
import { GraftError, lockDirectory } from '../base/index.ts';
import type { Packed, Row } from '../data/index.ts';
import { type Group, joinGroup, type RankPlacement } from '../distributed/index.ts';
import { currentEngine, useThreads } from '../engine/index.ts';
import { resolveModel } from '../io/index.ts';
import { useGates, useGradientCheckpointing, usePrecision } from '../nn/index.ts';
import { type Optimizer, scheduleFactor } from '../optim/index.ts';
import { batchesOf } from '../tasks/index.ts';
import { type Tensor, useDevice } from '../tensor/index.ts';
import { type ActiveLayers, activeLayers } from './active.ts';
import { optimizerFor } from './attach.ts';
import { beginning, patienceIsOver } from './beginning.ts';
import { writeCards } from './card.ts';
import { lastCheckpoint, type RunState, restoreParameters, saveCheckpoint } from './checkpoints.ts';
import { withBatchOf } from './deepspeed.ts';
import { explained, requireFinite, resultNotSaved } from './diverged.ts';
import { EventLog, type TrainEvent } from './events.ts';
import { FixedBlocks, fixedBlocksOf } from './fixed-blocks.ts';
import { HeldOut } from './held-out.ts';
import { identityOf, withRows } from './identity.ts';
import { trainLoop } from './loop.ts';
import { Offload } from './offload.ts';
import { deviceOfRun, rankReports, requireSameRun, shardingFor, threadsOf, workForAll } from './ranks.ts';
import type { Recipe } from './recipe.ts';
import {
  finishedResult,
  type StepCost,
  savedResult,
  startEvent,
  type TrainResult,
  tightness,
  trainResult,
  warningsOf,
} from './report.ts';
import { findRun, type RunRecord, requireSame, save, saveResult, setAside, writeRecord } from './run-directory.ts';
import { saveShares } from './sharded-checkpoint.ts';
import type { Sharding } from './sharding.ts';
import { restoreShares, restoreState, shareParameters, withWholeState } from './shared-state.ts';
import { trainStep } from './step.ts';
import { openTaskRuns, type TaskRun, type TaskRuns } from './task-runs.ts';
import { requireNoWholeGradients } from './whole-gradients.ts';
import { largestStep, wholeStepWarning } from './whole-steps.ts';

/** Milliseconds between two checkpoints, where the recipe does not give steps. */
const checkpointInterval = 60_000;

/** How a run treats what its directory holds. */
export interface RunOptions {
  /** Start over; what an earlier run left is kept in `previous-N/`. */
  readonly fresh?: boolean | undefined;
  /** Go on with a finished run for so many passes over the rows. */
  readonly moreEpochs?: number | undefined;
  /** The place of this process among those that train together, as `launchEnvironment` reads it. Default: it trains alone. */
  readonly placement?: RankPlacement | undefined;
}

/**
 * Runs a recipe in this thread. An unfinished run in the run directory is resumed, a finished one gives its result again, and one of
 * another recipe is refused. Of several processes, rank 0 alone reads and writes the run directory; all have the same result.
 * @param listen is given every event, on rank 0
 * @param stopRequested is asked after every step; when it says true the run ends with a checkpoint, as an 'interrupted' error
 * @throws GraftError for anything that is wrong with the recipe, the model, the data or the machine, or with another process
 */
export async function runTraining(
  { placement, recipe, ...options }: { readonly recipe: Recipe } & RunOptions,
  listen: (event: TrainEvent) => void,
  stopRequested: () => boolean = () => false,
): Promise<TrainResult> {
  const threads = useThreads(threadsOf(recipe.train.threads, placement ?? { size: 1, localSize: 1 }));
  const processes = placement?.size ?? 1;
  const job = { ...options, recipe: withBatchOf(recipe, processes) };
  using group = joinGroup(placement);
  try {
    const result = await runInGroup(job, group, threads, listen, stopRequested);
    return placement ? { ...group.share(() => result), ranks: rankReports(group) } : result;
  } catch (error) {
    throw group.failed(error);
  }
}

async function runInGroup(
  { recipe, fresh = false, moreEpochs }: { readonly recipe: Recipe } & RunOptions,
  group: Group,
  threads: number,
  listen: (event: TrainEvent) => void,
  stopRequested: () => boolean,
): Promise<TrainResult> {
  const { train, run } = recipe;
  const { dir } = run;
  using _device = useDevice(deviceOfRun(train.device, group.size));
  const isFirst = group.rank === 0;
  const modelPath = await resolveModel(recipe.model);
  using _lock = isFirst ? lockDirectory(dir) : undefined;
  if (fresh && moreEpochs !== undefined) {
    throw new GraftError(
      'usage',
      'fresh (--fresh) starts over, and moreEpochs (--more-epochs) goes on with a finished run',
      {
        hint: 'Give one of the two',
      },
    );
  }
  const found = fresh || !isFirst ? undefined : findRun(dir);
  const begun = group.share(() => found?.record);
  const precision = group.share(() => identityOf(recipe, modelPath, begun?.identity).precision);
  const settings = { ...identityOf(recipe, modelPath, begun?.identity), precision };
  // What differs is named before a large model is loaded.
  if (found) requireSame(found, settings, dir);
  requireSameRun(group, settings);
  using _precision = usePrecision(precision);
  using _checkpointing = useGradientCheckpointing(train.gradient_checkpointing ?? false);
  using offload = new Offload(recipe);
  let tight: TrainEvent | undefined;
  using taskRuns = await openTaskRuns(recipe, modelPath, {
    precision,
    microTokens: begun?.microTokens,
    processes: group.size,
    sharers: group.localSize,
    offload,
    sharedBy: train.zero.stage === 3 && group.size > 1 ? group : undefined,
    announce(memory) {
      if (!isFirst) return;
      tight = tightness(memory, recipe);
      // A run that was finished may have nothing left to do.
      if (found?.end) return;
      listen({ type: 'memory', ...memory });
      if (tight) listen(tight);
    },
  });
  const identity = withRows(settings, recipe, taskRuns);
  if (found) requireSame(found, identity, dir);
  requireSameRun(group, identity);
  const firstNotes = [...offload.notes(taskRuns.memory), ...workForAll(group, taskRuns, recipe)];
  // The smallest of all processes: machines differ in memory.
  const microTokens = Math.min(...group.agree({ tokens: taskRuns.microTokens }).tokens);
  const { state: from, warnings, finished } = group.share(() => beginning(recipe, taskRuns, found, moreEpochs));
  if (finished) {
    return group.share(() => {
      const end = found!.end!;
      const result = finishedResult(found!, end, dir);
      const started = found!.events.find(({ type }) => type === 'start');
      if (started) listen(started);
      listen({ ...end, adapter: result.adapter, reason: 'finished-before' });
      return result;
    });
  }
  const { host: model, adapter, parameters, list } = taskRuns;
  const { stage } = train.zero;
  if (stage > 0 && group.size === 1)
    warnings.push(`train.zero.stage ${stage} divides nothing, because there is one process`);
  const sharding = shardingFor(group, taskRuns, stage);
  using _gates = sharding.gates && useGates(sharding.gates);
  using optimizer = optimizerFor(taskRuns, recipe, sharding.owned, offload.optimizer);
  const steps = { steps: from.end.steps, severalTasks: list.length > 1 };
  const layers = activeLayers({ model, adapter, parameters, optimizer, ...steps, seed: train.seed });
  if (optimizer.inBackward) requireNoWholeGradients({ adapter, processes: group.size });
  const wholeStep = optimizer.inBackward && largestStep(taskRuns, recipe, { from: from.step, to: from.end.steps });
  const { blocks, notes } = fixedBlocksOf(
    recipe,
    taskRuns,
    { begun: begun && (begun.fixedBlocks ?? 0), group },
    layers?.neverTrains,
  );
  // Only now: a recipe that turns out wrong leaves the directory as it is.
  const log = isFirst ? new EventLog(dir, listen) : undefined;
  const { record, earlier } = group.share((): { record: RunRecord; earlier: TrainEvent[] } => {
    if (found) {
      if (!sharding.isBaseShared) restoreParameters(found.checkpoint!.path, parameters);
      return { record: found.record, earlier: log!.rewind(from.step) };
    }
    const aside = setAside(dir);
    if (aside && !fresh)
      warnings.push(
        `an earlier run ended before its first checkpoint: it is in ${aside.folder}/, and this one starts anew`,
      );
    const begun = {
      identity,
      microTokens,
      ...(blocks > 0 && { fixedBlocks: blocks }),
      ...(aside?.holdsResult && { previous: aside.folder }),
    };
    writeRecord(dir, begun);
    return { record: begun, earlier: [] };
  });
  if (begun && sharding.isBaseShared) restoreShares(sharding, found?.checkpoint?.path, parameters);
  else shareParameters(group, sharding.everywhere);
  if (begun) restoreState(sharding, found?.checkpoint?.path, optimizer);
  currentEngine().native.trim();

  const warn = (message: string) => log?.emit({ type: 'warning', message });
  const resumed = found !== undefined && !found.end;
  using fixedBlocks = FixedBlocks.of({ recipe, taskRuns, identity, threads, blocks, warn, resumed });
  const stepTokens = wholeStep || microTokens;
  const started = { step: from.step, steps: from.end.steps, microTokens: stepTokens, threads, precision, fixedBlocks };
  log?.emit(startEvent(taskRuns, started));
  if (stepTokens > microTokens) warnings.push(wholeStepWarning(recipe, taskRuns, stepTokens));
  if (tight && found?.end) log?.emit(tight);
  else if (tight) log?.record(tight);
  const trained = earlier.findLast(({ type }) => type === 'layers');
  if (trained && isFirst) listen(trained); // what trains, until that changes
  const allNotes = [...firstNotes, ...notes, ...(fixedBlocks?.notes ?? []), ...(layers?.notes ?? [])];
  for (const message of [...warnings, ...allNotes, ...warningsOf(taskRuns, recipe)]) warn(message);
  const state = { optimizer, layers, log, record, microTokens, stepTokens, fixedBlocks, from, earlier };
  return trainTo({ recipe, modelPath, sharding, taskRuns, ...state, stopRequested });
}

/** A run that is ready for its next step. */
interface Run {
  readonly recipe: Recipe;
  readonly modelPath: string;
  readonly sharding: Sharding;
  readonly taskRuns: TaskRuns;
  readonly optimizer: Optimizer;
  readonly layers: ActiveLayers | undefined;
  /** Undefined on all processes but rank 0, which alone writes. */
  readonly log: EventLog | undefined;
  readonly record: RunRecord;
  /** Tokens of a batch at most where it is only measured, and where it is learned from. */
  readonly microTokens: number;
  readonly stepTokens: number;
  readonly fixedBlocks: FixedBlocks | undefined;
  /** Where the run begins or is resumed, and its events up to there. */
  readonly from: RunState;
  readonly earlier: readonly TrainEvent[];
  readonly stopRequested: () => boolean;
}

/** Takes the steps that are left, with measurements and checkpoints between them, and saves the result. */
function trainTo({
  recipe,
  modelPath,
  sharding,
  taskRuns,
  optimizer,
  layers,
  log,
  record,
  microTokens,
  stepTokens,
  fixedBlocks,
  from,
  earlier,
  stopRequested,
}: Run): TrainResult {
  const { group } = sharding;
  const { adapter, parameters, list } = taskRuns;
  const { steps } = from.end;
  const { train, eval: evaluation, run } = recipe;
  const [best, checkpoints] = [join(run.dir, 'best'), join(run.dir, 'checkpoints')];
  const heldOut = new HeldOut(list, microTokens, train.batch_size, earlier, sharding, fixedBlocks);
  const evaluateEvery = evaluation.every ?? taskRuns.stepsPerEpoch;
  let state = from;
  const stoppedBefore = patienceIsOver(state, recipe);

  let notCopied: readonly string[] = [];
  const saveTo = (to: string, present: (tensor: Tensor) => void) => {
    const left = save(taskRuns, to, recipe, modelPath, present);
    if (left.length > notCopied.length)
      log!.emit({ type: 'warning', message: `not copied from the base: ${left.join(', ')}` });
    notCopied = left;
  };
  const costs: StepCost[] = [];
  let lastCheckpointAt = performance.now();
  /** What the processes agreed on after the last step: whether any was asked to stop, and whether rank 0's clock says to save. */
  let agreed = { stop: false, save: false };
  const agree = () => {
    const due = !run.checkpoint_every && performance.now() - lastCheckpointAt > checkpointInterval;
    const { stop, save } = group.agree({ stop: Number(stopRequested()), save: Number(due) });
    agreed = { stop: stop.some((asked) => asked > 0), save: save[0]! > 0 };
  };
  let current: { taskRun: TaskRun; rows: readonly Row[]; lr: number } = { taskRun: list[0]!, rows: [], lr: train.lr };
  /** Runs `act`; a loss or gradient that is not finite is explained. */
  const explaining = <T>(act: () => T): T => {
    try {
      return act();
    } catch (error) {
      const { taskRun, rows, lr } = current;
      const position = { step: state.step, steps: costs.length, checkpoints };
      const clipping = optimizer.inBackward ? 'train.optimizer.clip_grad_value' : 'train.max_grad_norm';
      throw explained(error, { model: taskRun.model, parameters: sharding.kept, rows, lr, clipping, ...position });
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
      const active = layers?.begin(step);
      if (active) log?.emit({ type: 'layers', step: step + 1, trained: active.parts, parameters: active.parameters });
      for (const message of layers?.takeNotes() ?? []) log?.emit({ type: 'warning', message });
      const batches = batchesOf(task, rows, stepTokens, rows.length, model.ports.promptLength, group.size);
      const { max_grad_norm: maxGradNorm, seed } = train;
      const hidden = fixedBlocks && { hidden: (batch: Packed) => fixedBlocks.hidden(model, batch) };
      const result = explaining(() =>
        trainStep({
          model,
          task,
          parameters,
          optimizer,
          adapter,
          layers,
          batches,
          sharding,
          lr,
          maxGradNorm,
          seed,
          step,
          ...hidden,
        }),
      );
      agree();
      const seconds = (performance.now() - start) / 1e3;
      state = { ...state, step: step + 1 };
      costs.push({ loss: result.loss, tokens: result.tokens, seconds });
      const epoch = (step + 1) / taskRuns.stepsPerEpoch;
      const rssMb = process.memoryUsage.rss() / 2 ** 20;
      const { handles } = currentEngine().native.memory();
      const ofTask = name !== undefined && { task: name };
      log?.emit({ type: 'step', step: step + 1, ...ofTask, ...result, lr, seconds, epoch, rssMb, handles });
    },

    ...(!heldOut.isEmpty && {
      evaluate(step: number) {
        const events = explaining(() => heldOut.measure(step, stopRequested));
        state = { ...state, unmeasured: !events };
        if (!events) return 'stopped';
        const loss = heldOut.loss(step)!;
        const better = state.best === null || loss < state.best.loss;
        const saved = evaluation.keep === 'best';
        state = { ...state, ...(better ? { best: { step, loss, saved }, stale: 0 } : { stale: state.stale + 1 }) };
        if (better && saved) sharding.whole((present) => saveTo(best, present));
        for (const event of events) log?.emit({ ...event, best: better });
        return patienceIsOver(state, recipe) ? 'stop' : 'continue';
      },
    }),
    stopRequested: () => (group.size === 1 ? stopRequested() : agreed.stop),
    evaluateNow: (step) => step % evaluateEvery === 0,

    checkpoint(step) {
      const start = performance.now();
      explaining(() => requireFinite(sharding.kept, step));
      log?.flush();
      fixedBlocks?.makeRoom();
      let path = '';
      const { keep_checkpoints: keep } = run;
      if (sharding.isBaseShared) path = saveShares(sharding, checkpoints, state, optimizer.state, keep);
      else
        withWholeState(group, optimizer, (whole) => {
          path = saveCheckpoint(checkpoints, state, parameters, whole, keep);
        });
      lastCheckpointAt = performance.now();
      log?.emit({ type: 'checkpoint', step, path, seconds: (lastCheckpointAt - start) / 1e3 });
    },
    checkpointNow: (step) => (run.checkpoint_every ? step % run.checkpoint_every === 0 : agreed.save),
  });

  if (reason === 'stopped') {
    const checkpoint = group.share(() => lastCheckpoint(checkpoints)!.path);
    throw new GraftError('interrupted', `stopped after step ${state.step} of ${steps}; a checkpoint was saved`, {
      place: checkpoint,
      hint: 'Run the same command again to resume',
      data: { step: state.step, checkpoint },
    });
  }
  fixedBlocks?.remove();
  const kept = evaluation.keep === 'best' ? state.best : null;
  sharding.whole((present) => {
    try {
      const saveNow = (to: string) => saveTo(to, present);
      saveResult(run.dir, adapter.writes, { previous: record.previous, best: kept ? best : undefined, saveNow });
    } catch (error) {
      throw resultNotSaved(error, lastCheckpoint(checkpoints)!.path);
    }
  });
  return group.share(() => {
    const adapterDir = join(run.dir, adapter.writes);
    const saved = savedResult(taskRuns, heldOut, { adapter: adapterDir, savedStep: kept?.step ?? state.step });
    writeCards(recipe, modelPath, taskRuns, saved);
    log!.emit({ type: 'end', step: state.step, reason: stoppedBefore ? 'early-stop' : reason, ...saved });
    return trainResult(saved, { earlier, costs, resumedFrom: from.step });
  });
}
