/** What a run tells: its first events, and its result. */
import { join } from 'node:path';
import type { Precision } from '../nn/index.ts';
import type { Metric } from '../tasks/index.ts';
import { keepsHead } from './attach.ts';
import type { TrainEvent } from './events.ts';
import type { HeldOut } from './held-out.ts';
import type { Recipe } from './recipe.ts';
import type { TaskRuns } from './task-runs.ts';

/** The result of one task: its last measurement on held-out rows, and where its adapter is. */
export interface TaskResult {
  /** Directory of its adapter. */
  readonly adapter: string;
  /** Loss of the last measurement on held-out rows; null where there was none. */
  readonly evalLoss: number | null;
  /** Metrics of the last measurement on held-out rows. */
  readonly evalMetrics: readonly Metric[];
}

/** The result of a run; `graft train --json` prints it last, in snake_case. */
export interface TrainResult {
  /** Mean loss of every step of the run: in nats a predicted token, or as the task defines it. */
  readonly losses: number[];
  /** Of all steps that this process did. */
  readonly seconds: number;
  /** Tokens (predicted or not) a second over those steps, the first left out. */
  readonly tokensPerSecond: number;
  /** Peak resident memory of the process, in MiB. */
  readonly peakRssMb: number;
  /** Path of the trained adapter (of a method that writes a whole model: of the model; of several tasks: of the folder of their adapters). */
  readonly adapter: string;
  /** Of the last measurement on held-out rows; of several tasks the mean of their losses by their shares of the steps. */
  readonly evalLoss: number | null;
  /** Of several tasks none: they are in `tasks`. */
  readonly evalMetrics: readonly Metric[];
  /** Of several tasks, by name. */
  readonly tasks?: Readonly<Record<string, TaskResult>>;
  /** The step that the run was resumed after; 0 for a new run. */
  readonly resumedFrom: number;
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
  { list, parameters, steps, parameterCount, weightBytes }: TaskRuns,
  {
    step,
    microTokens,
    threads,
    precision,
  }: { step: number; microTokens: number; threads: number; precision: Precision },
): TrainEvent {
  const counts = list.map(({ plan, share }) => ({ rows: plan.rows, heldOut: plan.heldOut.length, share }));
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
    threads,
    precision,
    ...(named.length > 0 && { tasks: Object.fromEntries(named) }),
  };
}

/** What should be known before the first step: of the method, of the head, of the rows. */
export function warningsOf({ list, adapter, host }: TaskRuns, recipe: Recipe): string[] {
  const headWarnings: string[] = [];
  if (recipe.adapter && !keepsHead(host, recipe)) {
    const why = recipe.tasks ? 'is not part of what the tasks share' : 'is for another task';
    const instead = recipe.tasks ? 'each task begins with a new head' : 'the model keeps its own head';
    headWarnings.push(`the head of ${recipe.adapter} ${why}: ${instead}`);
  }
  const advice = adapter.advise?.(recipe.train.lr) ?? [];
  return [...adapter.warnings, ...advice, ...headWarnings, ...list.flatMap(({ plan }) => plan.warnings)];
}

/**
 * The result of a run that ended.
 * @param earlier events from before this process, where the run was resumed
 * @param costs of the steps that this process did
 */
export function trainResult(
  { list }: TaskRuns,
  heldOut: HeldOut,
  {
    savedTo,
    earlier,
    costs,
    resumedFrom,
  }: {
    savedTo: string;
    earlier: readonly TrainEvent[];
    costs: readonly StepCost[];
    resumedFrom: number;
  },
): TrainResult {
  const timed = costs.length > 1 ? costs.slice(1) : costs;
  const results = list.map((taskRun): TaskResult => {
    const { loss, metrics } = heldOut.last(taskRun) ?? { loss: null, metrics: [] };
    return { adapter: join(savedTo, taskRun.name ?? ''), evalLoss: loss, evalMetrics: metrics };
  });
  const several = list[0]!.name !== undefined;
  return {
    losses: [...earlier.flatMap((e) => (e.type === 'step' ? [e.loss] : [])), ...costs.map(({ loss }) => loss)],
    seconds: sum(costs.map(({ seconds }) => seconds)),
    tokensPerSecond: sum(timed.map(({ tokens }) => tokens)) / sum(timed.map(({ seconds }) => seconds)) || 0,
    peakRssMb: process.resourceUsage().maxRSS / 1024,
    adapter: savedTo,
    evalLoss: heldOut.loss,
    evalMetrics: several ? [] : results[0]!.evalMetrics,
    ...(several && { tasks: Object.fromEntries(list.map(({ name }, i) => [name!, results[i]!])) }),
    resumedFrom,
  };
}
