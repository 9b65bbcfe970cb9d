/** The directory of a run: what an earlier run left there, and how the result of this one takes its place. */

import { existsSync, mkdirSync, renameSync, rmSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { saveAdapter, savedDataSettings, settingsOf, writeSettings } from '../adapters/index.ts';
import { GraftError } from '../base/index.ts';
import { tokenizerFilesOf } from '../data/index.ts';
import { readJsonObject, writeDirectory, writeText } from '../io/index.ts';
import { saveModel } from '../models/index.ts';
import type { Tensor } from '../tensor/index.ts';
import { lastCheckpoint, type RunState } from './checkpoints.ts';
import { readEvents, type TrainEvent } from './events.ts';
import { differences, type RunIdentity } from './identity.ts';
import { type Recipe, recipesOf } from './recipe.ts';
import type { TaskRuns } from './task-runs.ts';

/** What a run keeps to from its first step to its last; `run.json` in its directory. */
export interface RunRecord {
  readonly identity: RunIdentity;
  /** Tokens of a micro-batch at most. */
  readonly microTokens: number;
  /** How many of the lowest blocks are computed for one row at a time (fixed-blocks.ts); absent: none. */
  readonly fixedBlocks?: number;
  /** Folder in the run directory that takes the result of the run before, which stays in place until this one has its own. */
  readonly previous?: string;
}

type EndEvent = Extract<TrainEvent, { type: 'end' }>;

/** A run in its directory. */
export interface FoundRun {
  readonly record: RunRecord;
  /** Undefined: its checkpoints were deleted. */
  readonly checkpoint: { readonly path: string; readonly state: RunState } | undefined;
  readonly events: readonly TrainEvent[];
  /** Undefined: the run has not ended, or its result was deleted. */
  readonly end: EndEvent | undefined;
}

const results = ['adapter', 'model'];
const recordName = 'run.json';
const logName = 'events.jsonl';
/** What a run has beside its result. */
const parts = [recordName, 'best', 'checkpoints', logName];

const present = (dir: string, names: readonly string[]) => names.filter((name) => existsSync(join(dir, name)));

/**
 * The run that a directory holds. Undefined where there is nothing to resume: no run, or one that ended before its first checkpoint.
 * @throws GraftError 'state' for results that do not say of which run they are
 */
export function findRun(dir: string): FoundRun | undefined {
  const checkpoint = lastCheckpoint(join(dir, 'checkpoints'));
  const [result] = present(dir, results);
  if (!checkpoint && !result) return undefined;
  if (!existsSync(join(dir, recordName))) {
    const what = result ? `${result}/` : 'checkpoints/';
    throw new GraftError('state', `the run directory has ${what} but no ${recordName}, so nothing says of which run`, {
      place: dir,
      hint: 'Choose another run.dir, or start over (--fresh, or fresh: true from TypeScript), which keeps what is there in previous-N/',
      data: { startsOver: '--fresh' },
    });
  }
  const record = readRecord(dir);
  const events = readEvents(join(dir, logName));
  const last = events.at(-1);
  const end = last?.type === 'end' && result ? last : undefined;
  if (!checkpoint && !end) return undefined;
  return { record, checkpoint, events, end };
}

/**
 * Compares a run with a recipe.
 * @throws GraftError 'state' naming everything that decides losses and differs
 */
export function requireSame({ record, checkpoint, end }: FoundRun, identity: RunIdentity, dir: string): void {
  const differing = differences(record.identity, identity);
  if (differing.length === 0) return;
  const done = checkpoint?.state.step ?? end!.step;
  throw new GraftError(
    'state',
    `the run directory has another run, ${end ? 'finished' : 'stopped'} after step ${done}: ${differing.join('; ')}`,
    {
      place: dir,
      hint: `Undo the change to ${end ? 'go on with' : 'resume'} that run, choose another run.dir, or start over (--fresh, or fresh: true from TypeScript), which keeps that run in previous-N/`,
      data: { step: done, differences: differing, startsOver: '--fresh' },
    },
  );
}

/**
 * Moves what an earlier run left to `previous-N/`, except for its result, which stays until there is a new one.
 * @returns the folder, and whether it will take a result; undefined where there was nothing
 */
export function setAside(dir: string): { folder: string; holdsResult: boolean } | undefined {
  const [left, [result]] = [present(dir, parts), present(dir, results)];
  if (left.length === 0 && !result) return undefined;
  let n = 1;
  while (existsSync(join(dir, `previous-${n}`))) n++;
  const folder = `previous-${n}`;
  mkdirSync(join(dir, folder));
  for (const name of left) renameSync(join(dir, name), join(dir, folder, name));
  return { folder, holdsResult: result !== undefined };
}

/** @throws GraftError 'state' for a record that lacks what this version compares, as one of an earlier version may */
function readRecord(dir: string): RunRecord {
  const record = readJsonObject(join(dir, recordName));
  const { fields, contents } = (record.identity ?? {}) as Partial<RunIdentity>;
  if (fields && contents && typeof record.microTokens === 'number') return record as unknown as RunRecord;
  throw new GraftError(
    'state',
    'this does not say of which run the directory is; another version of Graft may have written it',
    {
      place: join(dir, recordName),
      hint: 'Choose another run.dir, or start over (--fresh, or fresh: true from TypeScript), which keeps what is there in previous-N/',
      data: { startsOver: '--fresh' },
    },
  );
}

export function writeRecord(dir: string, record: RunRecord): void {
  writeText(join(dir, recordName), `${JSON.stringify(record, null, 1)}\n`);
}

/**
 * Saves the trained parameters to `to`: as a model, an adapter, or a folder with an adapter for each of several tasks.
 * @param present is called before a tensor of the model is read
 * @returns what stands beside the base's weights and is not copied to a model
 */
export function save(
  { list, adapter, host }: TaskRuns,
  to: string,
  recipe: Recipe,
  modelPath: string,
  present?: (tensor: Tensor) => void,
): readonly string[] {
  if (adapter.writes === 'model') {
    const settings = settingsOf(adapter.parts);
    // The weights are written as they are trained, and not as they are rounded.
    for (const part of settings) part.enabled = false;
    try {
      return saveModel(host, to, modelPath, 'float32', tokenizerFilesOf(modelPath), {
        present,
        writeMore: (draft) => writeSettings(draft, settings),
      });
    } finally {
      for (const part of settings) part.enabled = true;
    }
  }
  // Where the adapter is read, another folder may be the working directory.
  const base = existsSync(recipe.model) ? resolve(recipe.model) : recipe.model;
  const data = recipesOf(recipe).map(([, { data }]) => savedDataSettings(data));
  if (!recipe.tasks) {
    saveAdapter(host, adapter, to, { base, data: data[0]!, present });
    return [];
  }
  writeDirectory(to, (work) => {
    for (const [taskNumber, { name, model, head }] of list.entries()) {
      const options = { base, host, taskNumber, data: data[taskNumber]!, present };
      saveAdapter(model, { ...adapter, head }, join(work, name!), options);
    }
  });
  return [];
}

/**
 * Puts the result of a run in its place, and then that of the run before into its folder: at any moment one of them is whole.
 * @param name `adapter` or `model`
 * @param best directory with the best result on held-out rows; undefined: the parameters as they are now are saved
 */
export function saveResult(
  dir: string,
  name: string,
  {
    previous,
    best,
    saveNow,
  }: { previous: string | undefined; best: string | undefined; saveNow: (to: string) => void },
): void {
  const to = join(dir, name);
  const earlier = previous !== undefined && present(join(dir, previous), results).length === 0 && join(dir, previous);
  if (best !== undefined && !existsSync(best)) {
    // A run killed just before its end has moved its best result already.
    if (existsSync(to) && !earlier) return;
    throw new GraftError('state', 'the best result was deleted while the run was stopped', {
      place: best,
      hint: 'Resume with eval.keep: last to save the parameters of the last step',
    });
  }
  if (best === undefined && !earlier) {
    saveNow(to);
    return;
  }
  const complete = best ?? join(dir, '.result');
  if (best === undefined) saveNow(complete);
  if (earlier) for (const old of present(dir, results)) renameSync(join(dir, old), join(earlier, old));
  rmSync(to, { recursive: true, force: true });
  renameSync(complete, to);
}
