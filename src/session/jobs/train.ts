import { type Recipe, type RunOptions, runTraining, type TrainEvent, type TrainResult } from '../../train/index.ts';
import type { JobContext } from '../job-context.ts';
import { releaseResidents } from '../resident.ts';

/** Runs a recipe. Emits its events. */
export function train(
  job: { readonly recipe: Recipe } & RunOptions,
  { emit, stopRequested }: JobContext<TrainEvent>,
): Promise<TrainResult> {
  releaseResidents();
  return runTraining(job, emit, stopRequested);
}
