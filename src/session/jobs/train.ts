import { type Recipe, type RunOptions, runTraining, type TrainEvent, type TrainResult } from '../../train/index.ts';
import type { JobContext } from '../job-context.ts';
import { releaseResidents } from '../resident.ts';

/** Runs a recipe. Emits its events. */
export function train(
  { device: _, ...job }: { readonly recipe: Recipe; readonly device: string } & RunOptions,
  { emit, stopRequested }: JobContext<TrainEvent>,
): Promise<TrainResult> {
  releaseResidents();
  return runTraining(job, emit, stopRequested);
}
