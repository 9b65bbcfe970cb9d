/** Where a run begins: at its first step, or after those that an earlier process did; and where it ends. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import { scheduleFactor } from '../optim/index.ts';
import type { RunState } from './checkpoints.ts';
import { digestOfRows } from './identity.ts';
import type { Recipe } from './recipe.ts';
import type { FoundRun } from './run-directory.ts';
import type { TaskRuns } from './task-runs.ts';

/** Whether the held-out loss has not fallen for as many measurements as the recipe has patience for. */
export const patienceIsOver = ({ stale }: RunState, { eval: { patience } }: Recipe): boolean =>
  patience !== undefined && stale >= patience;

/**
 * Returns the state that a run begins with, what should be known about it, and whether nothing is left to do.
 * @param found the run of the same identity in the directory, if there is one
 * @param moreEpochs passes over the rows to add to a finished run
 * @throws GraftError 'usage' for an end that the steps already done do not allow, 'state' where the checkpoint was deleted
 */
export function beginning(
  recipe: Recipe,
  taskRuns: TaskRuns,
  found: FoundRun | undefined,
  moreEpochs: number | undefined,
): { state: RunState; warnings: string[]; finished: boolean } {
  const heldOutRows = taskRuns.list.flatMap(({ plan }) => plan.heldOut);
  const heldOut = heldOutRows.length > 0 ? digestOfRows(heldOutRows) : null;
  const { dir } = recipe.run;
  if (moreEpochs !== undefined && !found?.end) {
    throw new GraftError('usage', found ? 'the run is not finished yet' : 'the directory has no finished run', {
      place: dir,
      hint: `Run the command without --more-epochs ${found ? 'to resume it' : 'first'}`,
    });
  }
  const start = { recipe: taskRuns.steps, steps: taskRuns.steps };
  if (!found) {
    return { state: { step: 0, end: start, best: null, stale: 0, heldOut }, warnings: [], finished: false };
  }
  const earlier = found.checkpoint?.state;
  const done = earlier?.step ?? found.end!.step;
  const previousEnd = earlier?.end ?? { recipe: done, steps: done };
  const end = endAfter(done, previousEnd, taskRuns, moreEpochs);
  if (end.steps !== previousEnd.steps) requireSameRates(recipe, taskRuns, done, previousEnd.steps, end.steps);
  const stopsEarly = earlier ? patienceIsOver(earlier, recipe) : found.end!.reason === 'early-stop';
  const finished = found.end !== undefined && (end.steps === done || stopsEarly);
  if (!earlier) {
    if (finished) return { state: { step: done, end, best: null, stale: 0, heldOut }, warnings: [], finished };
    throw new GraftError('state', `the run is finished after ${done} steps, and its checkpoints were deleted`, {
      place: dir,
      hint: 'To learn more, begin a new run from its adapter (the field adapter)',
    });
  }

  const warnings: string[] = [];
  const state = { ...earlier, end, heldOut };
  const forget = (why: string) => {
    if (state.best !== null) warnings.push(`${why}: the best result is looked for after step ${done}`);
    Object.assign(state, { best: null, stale: 0 });
  };
  const kept = ['best', taskRuns.adapter.writes].some((name) => existsSync(join(dir, name)));
  if (heldOut !== earlier.heldOut) forget('the held-out rows are not those that the run was measured on before');
  else if (recipe.eval.keep === 'best' && state.best && !(state.best.saved && kept))
    forget('eval.keep: the best parameters so far were not saved');
  return { state, warnings, finished };
}

/** Where a run ends that has done `done` steps: as its recipe says, unless it was extended under the same recipe. */
function endAfter(
  done: number,
  previous: RunState['end'],
  { steps, stepsPerEpoch }: TaskRuns,
  moreEpochs: number | undefined,
): RunState['end'] {
  if (moreEpochs !== undefined)
    return { recipe: steps, steps: done + Math.max(1, Math.round(stepsPerEpoch * moreEpochs)) };
  if (previous.recipe === steps) return previous;
  if (steps >= done) return { recipe: steps, steps };
  throw new GraftError('usage', `the recipe now ends after ${steps} steps, and the run has done ${done}`, {
    place: 'train',
    hint: `Set train.steps to ${done} or more, or start over (--fresh, or fresh: true from TypeScript)`,
  });
}

/** @throws GraftError 'usage' where the steps that are done would have been others with the new end */
function requireSameRates(
  { train: { schedule: type, warmup_steps, warmup_ratio } }: Recipe,
  { adapter }: TaskRuns,
  done: number,
  before: number,
  now: number,
): void {
  const factor = (step: number, steps: number) => scheduleFactor({ type, warmup_steps, warmup_ratio }, step, steps);
  const differs = Array.from({ length: done }, (_, step) => factor(step, before) !== factor(step, now)).indexOf(true);
  const why =
    differs >= 0
      ? `the learning rate of step ${differs + 1} depends on it (train.schedule: ${type}${warmup_ratio ? ', warmup_ratio' : ''})`
      : adapter.beforeStep && done > 0
        ? `the schedule of ${adapter.method} depends on it`
        : undefined;
  if (!why) return;
  throw new GraftError('usage', `the end cannot change from step ${before} to ${now} after ${done} steps: ${why}`, {
    place: 'train',
    hint: `Give train.steps or epochs their former values, begin a new run from its adapter (the field adapter), or start over (--fresh, or fresh: true from TypeScript)`,
  });
}
