/** The directory of a run: prepared when the run begins; at its end it holds the result. */

import { existsSync, mkdirSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { saveAdapter } from '../adapters/index.ts';
import { tokenizerFilesOf } from '../data/index.ts';
import { writeDirectory } from '../io/index.ts';
import { saveModel } from '../models/index.ts';
import { lastCheckpoint, type RunState } from './checkpoints.ts';
import { EventLog } from './events.ts';
import type { Recipe } from './recipe.ts';
import type { TaskRuns } from './task-runs.ts';

/** Prepares the run directory: returns the checkpoint to resume from; without one, older runs are moved to `previous-N/`. */
export function claimRunDirectory(
  dir: string,
  fingerprint: string,
  fresh: boolean,
): { path: string; state: RunState } | undefined {
  const log = new EventLog(dir, () => {});
  const events = log.read();
  const found = lastCheckpoint(join(dir, 'checkpoints'));
  const finished = events.at(-1)?.type === 'end';
  if (found && found.state.recipe === fingerprint && !finished && !fresh) return found;
  const parts = ['adapter', 'model', 'best', 'checkpoints', 'events.jsonl'].filter((name) =>
    existsSync(join(dir, name)),
  );
  if (parts.length > 0) {
    let n = 1;
    while (existsSync(join(dir, `previous-${n}`))) n++;
    mkdirSync(join(dir, `previous-${n}`));
    for (const name of parts) renameSync(join(dir, name), join(dir, `previous-${n}`, name));
  }
  return undefined;
}

/** Saves the trained parameters to `to`: as a model, an adapter, or a folder with an adapter for each of several tasks. */
export function save({ list, adapter, host }: TaskRuns, to: string, recipe: Recipe, modelPath: string): void {
  if (adapter.writes === 'model') {
    saveModel(host, to, modelPath, 'float32', tokenizerFilesOf(modelPath));
    return;
  }
  const base = recipe.model;
  if (!recipe.tasks) {
    saveAdapter(host, adapter, to, { base });
    return;
  }
  writeDirectory(to, (work) => {
    for (const [taskNumber, { name, model, head }] of list.entries()) {
      saveAdapter(model, { ...adapter, head }, join(work, name!), { base, host, taskNumber });
    }
  });
}

/**
 * Puts the result of a run in its place.
 * @param best directory with the best result on held-out rows; undefined: the parameters as they are now are saved
 */
export function saveResult(to: string, best: string | undefined, saveNow: (to: string) => void): void {
  if (best !== undefined && existsSync(best)) {
    rmSync(to, { recursive: true, force: true });
    renameSync(best, to);
  } else if (best === undefined || !existsSync(to)) {
    saveNow(to); // a run killed just before its end may have moved the best already
  }
}
