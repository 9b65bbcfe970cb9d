/** What the processes of a run agree on and give each other, besides the gradients of a step. */
import { GraftError } from '../base/index.ts';
import type { Group } from '../distributed/index.ts';
import { deviceOf, processor } from '../engine/index.ts';
import type { Stage } from './cluster-plan.ts';
import { differences, type RunIdentity } from './identity.ts';
import type { Recipe } from './recipe.ts';
import { gatheredSharding, type Sharding, shardingOf } from './sharding.ts';
import type { TaskRuns } from './task-runs.ts';

/** What one process of a run used. */
export interface RankReport {
  /** Number of the process, from 0. */
  readonly rank: number;
  /** Peak resident memory of the process, in MiB. */
  readonly peakRssMb: number;
  /** What it sent to other processes, in MiB. */
  readonly sentMb: number;
  /** What it received from them, in MiB. */
  readonly receivedMb: number;
  /** Seconds that it waited for others and for the network. */
  readonly waitS: number;
}

/** Processor threads of a process: those of the recipe, else an equal share of the cores of its machine. */
export const threadsOf = (threads: number | undefined, { size, localSize }: Pick<Group, 'size' | 'localSize'>) =>
  threads ?? (size === 1 ? undefined : Math.max(1, Math.floor(processor().cores / localSize)));

/**
 * Where a process computes. Several processes exchange tensors in the processor's memory, and so are on the processor.
 * @throws GraftError 'usage' for a GPU and several processes, or one that is not there; 'environment' where none can be used
 */
export function deviceOfRun(choice: string, processes: number): string {
  if (processes === 1) return deviceOf(choice);
  if (choice === 'auto' || choice === 'cpu') return 'cpu';
  throw new GraftError('usage', `several processes train on the processor only, and train.device is ${choice}`, {
    place: 'train.device',
    hint: 'Set it to auto, or start one process',
  });
}

/** What every process used, by rank. */
export function rankReports(group: Group): readonly RankReport[] {
  const { rank, traffic } = group;
  const mebibyte = 2 ** 20;
  return group.collect({
    rank,
    peakRssMb: process.resourceUsage().maxRSS / 1024,
    sentMb: traffic.sent / mebibyte,
    receivedMb: traffic.received / mebibyte,
    waitS: traffic.waited,
  });
}

/** @throws GraftError 'mismatch' where this process would do another run than rank 0: other settings, another model, other rows */
export function requireSameRun(group: Group, identity: RunIdentity): void {
  const first = group.share(() => identity);
  const differing = differences(first, identity);
  if (differing.length === 0) return;
  throw new GraftError('mismatch', `rank ${group.rank} has another run than rank 0: ${differing.join('; ')}`, {
    hint: 'Give every process the same recipe, model and rows',
    data: { differences: differing },
  });
}

/**
 * Divides what a run trains among its processes.
 * @throws GraftError 'usage' where a method reads gradients that stage 2 leaves to one process
 */
export function shardingFor(group: Group, { adapter, parameters, gathered }: TaskRuns, stage: Stage): Sharding {
  const { readsGradients = false } = adapter;
  if (gathered) return gatheredSharding(group, parameters, gathered, readsGradients);
  if (stage === 2 && readsGradients) {
    throw new GraftError(
      'usage',
      'the method reads all gradients after each update, and stage 2 keeps a share of them',
      {
        place: 'train.zero.stage',
        hint: 'Set it to 1',
      },
    );
  }
  return shardingOf(group, parameters, stage === 3 ? 0 : stage, readsGradients);
}

/**
 * Refuses more processes than there is work for, and says where most would be idle.
 * @returns what should be known before the first step
 * @throws GraftError 'usage' with the largest number of processes that has work
 */
export function workForAll({ size }: Group, { list }: TaskRuns, { train }: Recipe): string[] {
  if (size === 1) return [];
  for (const { name, plan } of list) {
    const rows = Math.max(...Array.from({ length: plan.stepsPerEpoch }, (_, step) => plan.rowsOf(step).length));
    if (rows >= size) continue;
    const ofTask = name === undefined ? '' : ` of ${name}`;
    const enough = plan.rows >= size && plan.rows > rows;
    throw new GraftError(
      'usage',
      `there are ${size} processes, but a step${ofTask} has ${rows} ${rows === 1 ? 'row' : 'rows'}`,
      {
        place: 'train.batch_size',
        hint: `Start ${rows} ${rows === 1 ? 'process' : 'processes'} at most${enough ? `, or set train.batch_size (${train.batch_size}) to a multiple of ${size}` : ''}`,
      },
    );
  }
  return list
    .filter(({ task }) => task.comparesRows)
    .map(
      ({ task }) =>
        `${task.head.name} compares all rows of a step, so one process does each step and the others wait for it`,
    );
}
