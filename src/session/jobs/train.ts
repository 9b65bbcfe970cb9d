import { type Recipe, runTraining, type TrainEvent, type TrainResult } from '../../train/index.ts';
import type { JobContext } from '../job-context.ts';
import { releaseResidents } from '../resident.ts';

/** Runs a recipe. Emits its events. */
export function train(
  { recipe, fresh }: { readonly recipe: Recipe; readonly fresh: boolean },
  { emit, stopRequested }: JobContext<TrainEvent>,
): Promise<TrainResult> {
  releaseResidents();
  return runTraining({ recipe, fresh }, emit, stopRequested);
}
