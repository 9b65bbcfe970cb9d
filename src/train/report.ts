/** What a run tells: its first events, and its result. */
import { basename, join } from 'node:path';
import { areSaved, readAdapterConfig, settingsOf } from '../adapters/index.ts';
import { undoneQuantization } from '../io/index.ts';
import { isSettings, writtenBy } from '../methods/index.ts';
import { denseType, kernelsText, type Precision } from '../nn/index.ts';
import { isInBackward } from '../optim/index.ts';
import { currentDevice, freeDeviceMemory, host as processor } from '../tensor/index.ts';
import { keepsHead } from './attach.ts';
import { deepspeedNotes } from './deepspeed.ts';
import type { SavedResult, TaskResult, TrainEvent } from './events.ts';
import type { FixedBlocks } from './fixed-blocks.ts';
import type { HeldOut } from './held-out.ts';
import { learningRates } from './learning-rates.ts';
import type { RunMemory } from './memory-plan.ts';
import type { RankReport } from './ranks.ts';
import type { Recipe } from './recipe.ts';
import type { FoundRun } from './run-directory.ts';
import type { TaskRuns } from './task-runs.ts';

/** The result of a run; `graft train --json` prints it last, in snake_case. */
export interface TrainResult extends SavedResult {
  /** Mean loss of every step of the run: in nats a predicted token, or as the task defines it. */
  readonly losses: number[];
  /** Of all steps that this process did; of a run that was finished before, of all its steps. */
  readonly seconds: number;
  /** Tokens (predicted or not) a second over those steps, the first left out. */
  readonly tokensPerSecond: number;
  /** Peak resident memory of the process, in MiB. */
  readonly peakRssMb: number;
  /** The step that the run was resumed after; 0 for a new run, and the last step for one that was finished before. */
  readonly resumedFrom: number;
  /** Of several processes: what each of them used, by rank. */
  readonly ranks?: readonly RankReport[];
}

/** What a process measured of one step. */
export interface StepCost {
  readonly loss: number;
  readonly tokens: number;
  readonly seconds: number;
}

const sum = (numbers: Iterable<number>) => [...numbers].reduce((a, b) => a + b, 0);

/** The event that begins a run, or resumes it after `step` steps. */
export function startEvent(
  { list, parameters, parameterCount, weightBytes, memory }: TaskRuns,
  {
    step,
    steps,
    microTokens,
    threads,
    precision,
    fixedBlocks: fixed,
  }: {
    step: number;
    steps: number;
    microTokens: number;
    threads: number;
    precision: Precision;
    fixedBlocks: FixedBlocks | undefined;
  },
): TrainEvent {
  const classesOf = ({ plan: { classes } }: TaskRuns['list'][number]) => (classes.length > 0 ? { classes } : {});
  const counts = list.map((taskRun) => {
    const { plan, share } = taskRun;
    return { rows: plan.rows, heldOut: plan.heldOut.length, share, ...classesOf(taskRun) };
  });
  const named = list.flatMap(({ name }, i) => (name === undefined ? [] : [[name, counts[i]!] as const]));
  return {
    type: 'start',
    step,
    steps,
    rows: sum(counts.map(({ rows }) => rows)),
    heldOut: sum(counts.map(({ heldOut }) => heldOut)),
    trainable: sum(parameters.values().map(({ numel }) => numel)),
    parameters: parameterCount,
    weightBytes,
    microTokens,
    memory,
    threads,
    precision,
    device: currentDevice(),
    kernels: kernelsText(currentDevice(), denseType()),
    ...(fixed && { fixedBlocks: fixed.blocks, ...(fixed.bytes > 0 && { keptBytes: fixed.bytes }) }),
    ...(named.length > 0 ? { tasks: Object.fromEntries(named) } : classesOf(list[0]!)),
  };
}

/** Warns where the memory that is free now is less than what the run will take, with the settings that take less; undefined where it fits. */
export function tightness(
  { totalMb, ...parts }: RunMemory,
  { quantize, method, train }: Recipe,
): TrainEvent | undefined {
  const freeMb = Math.floor(freeDeviceMemory() / 2 ** 20);
  if (totalMb <= freeMb) return undefined;
  const hasDisk = currentDevice() === processor;
  const isFrozen = writtenBy([method].flat()) !== 'model';
  const settings = [
    ...(parts.activationsMb > 0.1 * totalMb && !train.gradient_checkpointing
      ? ['train.gradient_checkpointing: true']
      : []),
    ...(parts.activationsMb > 0.1 * totalMb
      ? [`a smaller train.${isInBackward(train.optimizer) ? 'batch_size' : 'micro_tokens'}`]
      : []),
    ...(parts.optimizerMb > 0.1 * totalMb
      ? [`a train.optimizer that keeps less${hasDisk ? ', or train.offload.optimizer: true' : ''}`]
      : []),
    ...(parts.weightsMb > 0.1 * totalMb && isFrozen && hasDisk && !train.offload.weights
      ? ['train.offload.weights: true']
      : []),
    ...(!isFrozen ? ['method lora, or fewer layers at a time'] : quantize === 'nf4' ? [] : ['quantize: nf4']),
  ];
  const message = `the run will take ${totalMb} MB of memory, and ${freeMb} MB are free: the system may end it. What takes less: ${settings.join(', ') || 'a smaller model'}`;
  return { type: 'warning', message };
}

/** What should be known before the first step: of the method, of the head, of the rows. */
export function warningsOf(taskRuns: TaskRuns, recipe: Recipe): string[] {
  const { list, adapter, host } = taskRuns;
  const headWarnings: string[] = [];
  if (recipe.adapter && !keepsHead(host, recipe)) {
    const why = recipe.tasks ? 'is not part of what the tasks share' : 'is for another task';
    const instead = recipe.tasks ? 'each task begins with a new head' : 'the model keeps its own head';
    headWarnings.push(`the head of ${recipe.adapter} ${why}: ${instead}`);
  }
  const saved = recipe.adapter === undefined ? [] : readAdapterConfig(recipe.adapter).settings;
  const settings = [recipe.method].flat().filter(isSettings);
  const dropped = saved.filter(({ type }) => !settings.some((each) => each.type === type));
  for (const { type } of dropped)
    headWarnings.push(`${recipe.adapter} was trained with ${type}, and this recipe has none`);
  const attached = settingsOf(adapter.parts);
  if (saved.length > dropped.length && !areSaved(recipe.adapter!, attached)) {
    const anew = attached.some(({ parameters }) => parameters.size > 0) ? ', and learned scales begin anew' : '';
    headWarnings.push(
      `${recipe.adapter} was trained with other settings of ${saved[0]!.type}: those of this recipe count${anew}`,
    );
  }
  const advice = adapter.advise?.(recipe.train.lr) ?? [];
  const rates = learningRates(taskRuns, recipe.train).warnings;
  const measured = list.some(({ plan }) => plan.heldOut.length > 0);
  const unmeasured = (['every', 'patience'] as const).filter((name) => recipe.eval[name] !== undefined && !measured);
  const wholeAtStart = `${adapter.method} reads weights of every layer when it is attached: each process had the whole model in memory until its share was cut out`;
  return [
    ...deepspeedNotes(recipe),
    ...undoneQuantization(host.config),
    ...(taskRuns.readsBase ? [wholeAtStart] : []),
    ...adapter.warnings,
    ...advice,
    ...rates,
    ...headWarnings,
    ...unmeasured.map(
      (name) => `eval.${name} is not used: no row is held out to measure on (data.held_out, data.eval)`,
    ),
    ...list.flatMap(({ plan }) => plan.warnings),
  ];
}

/** Where the parameters that were saved after `savedStep` are, and how they did on the held-out rows. */
export function savedResult(
  { list }: TaskRuns,
  heldOut: HeldOut,
  { adapter, savedStep }: Pick<SavedResult, 'adapter' | 'savedStep'>,
): SavedResult {
  const results = list.map((taskRun): TaskResult => {
    const { loss, metrics } = heldOut.of(taskRun, savedStep) ?? { loss: null, metrics: [] };
    return { adapter: join(adapter, taskRun.name ?? ''), evalLoss: loss, evalMetrics: metrics };
  });
  const several = list[0]!.name !== undefined;
  return {
    adapter,
    savedStep,
    evalLoss: heldOut.loss(savedStep),
    evalMetrics: several ? [] : results[0]!.evalMetrics,
    ...(several && { tasks: Object.fromEntries(list.map(({ name }, i) => [name!, results[i]!])) }),
  };
}

/**
 * The result of a run that ended.
 * @param earlier events from before this process, where the run was resumed
 * @param costs of the steps that this process did
 */
export function trainResult(
  saved: SavedResult,
  { earlier, costs, resumedFrom }: { earlier: readonly TrainEvent[]; costs: readonly StepCost[]; resumedFrom: number },
): TrainResult {
  const timed = costs.length > 1 ? costs.slice(1) : costs;
  return {
    ...saved,
    losses: [...earlier.flatMap((e) => (e.type === 'step' ? [e.loss] : [])), ...costs.map(({ loss }) => loss)],
    seconds: sum(costs.map(({ seconds }) => seconds)),
    tokensPerSecond: sum(timed.map(({ tokens }) => tokens)) / sum(timed.map(({ seconds }) => seconds)) || 0,
    peakRssMb: process.resourceUsage().maxRSS / 1024,
    resumedFrom,
  };
}

/** The result of a run that was finished before, from its log. @param dir its directory, which may have been moved since */
export function finishedResult(
  { events }: FoundRun,
  end: Extract<TrainEvent, { type: 'end' }>,
  dir: string,
): TrainResult {
  const { type: _type, step, reason: _reason, ...saved } = end;
  const name = basename(saved.adapter);
  const tasks =
    saved.tasks &&
    Object.entries(saved.tasks).map(([task, result]) => [task, { ...result, adapter: join(dir, name, task) }] as const);
  const costs = events.filter((event) => event.type === 'step');
  const result = trainResult(
    { ...saved, adapter: join(dir, name), ...(tasks && { tasks: Object.fromEntries(tasks) }) },
    { earlier: [], costs, resumedFrom: step },
  );
  return { ...result, peakRssMb: Math.max(0, ...costs.map(({ rssMb }) => rssMb)) };
}
