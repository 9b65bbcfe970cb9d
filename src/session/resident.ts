/**
 * The model of the last job stays loaded, and so do its tokenizer and its adapters: asking again costs no load, and changing
 * the adapter is a switch. One model at a time.
 */
import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { loadAdapter, taskNumberOf, taskOfAdapter } from '../adapters/index.ts';
import { type Tokenizer, tokenizerIfAny, tokenizerOf } from '../data/index.ts';
import type { Adapter } from '../methods/index.ts';
import { headOf, type LoadOptions, loadModel, type Quantize } from '../models/index.ts';
import type { Model, TaskName } from '../nn/index.ts';

/** Adapters that stay on the model; of more, the one that was used longest ago is taken off. */
const most = 16;

interface Resident {
  readonly key: string;
  /** What the checkpoint is for, without an adapter that says otherwise. */
  readonly own: TaskName;
  readonly model: Model;
  /** By directory and state of its files, the one used last at the end. */
  readonly adapters: Map<string, Adapter>;
}

let resident: Resident | undefined;
let speaking: { readonly key: string; readonly tokenizer: Tokenizer } | undefined;

/** Path, size and time of what is on disk: files that were written again are another model. */
function stateOf(path: string): string {
  const files = statSync(path, { throwIfNoEntry: false })?.isDirectory()
    ? readdirSync(path).map((name) => join(path, name))
    : [path];
  return JSON.stringify(
    files.map((file) => {
      const stat = statSync(file, { throwIfNoEntry: false });
      return [file, stat?.size, stat?.mtimeMs];
    }),
  );
}

/** Adapters of one task and the same labels share a model; causal-lm has no head of its own. */
const headKey = ({ task, labels, ...more }: LoadOptions): string =>
  task === 'causal-lm' ? '' : JSON.stringify([task, labels, more]);

/**
 * The model with this adapter at work and no other; without one, the base. It is loaded for `task`, else for what the adapter
 * is for, else for what the checkpoint is for.
 * @throws what `loadModel` and `loadAdapter` throw; 'mismatch' where neither checkpoint nor adapter has the task's head
 */
export function residentModel(path: string, quantize: Quantize, adapter?: string, task?: TaskName): Model {
  const file = `${quantize} ${stateOf(path)}`;
  const own = resident?.key.startsWith(file) ? resident.own : headOf(path).name;
  const said = adapter === undefined ? { trainedHead: true } : taskOfAdapter(adapter);
  const head = { task: own, ...said, ...(task && { task }) };
  const key = file + headKey(head);
  if (resident?.key !== key) {
    releaseModel();
    resident = { key, own, model: loadModel(path, { quantize, ...head }), adapters: new Map() };
  }
  const { model, adapters } = resident;
  for (const other of adapters.values()) other.enabled = false;
  if (adapter === undefined) return model;
  const wanted = stateOf(adapter);
  const active = adapters.get(wanted) ?? loadAdapter(model, adapter);
  active.enabled = true;
  adapters.delete(wanted);
  adapters.set(wanted, active);
  const [[oldest, unused]] = adapters as unknown as [[string, Adapter]];
  if (adapters.size > most) {
    unused.detach();
    adapters.delete(oldest);
  }
  return model;
}

/** Which of several tasks rows are of that do not say so: as it is asked for, else as the adapter knows. */
export const taskNumberFor = ({ taskNumber, adapter }: TaskNumberArgs): number | undefined =>
  taskNumber ?? (adapter === undefined ? undefined : taskNumberOf(adapter));

export interface TaskNumberArgs {
  readonly adapter?: string;
  /** Of several tasks that share a prompt, the one of rows that do not say theirs. */
  readonly taskNumber?: number;
}

/** The tokenizer of the model there. @throws what `tokenizerOf` throws */
export function residentTokenizer(path: string): Tokenizer {
  const key = stateOf(path);
  if (speaking?.key !== key) speaking = { key, tokenizer: tokenizerOf(path) };
  return speaking.tokenizer;
}

/** As `residentTokenizer`; undefined for a model without one. */
export const residentTokenizerIfAny = (path: string): Tokenizer | undefined =>
  speaking?.key === stateOf(path) || tokenizerIfAny(path) ? residentTokenizer(path) : undefined;

/** Frees the model and its adapters: a job that loads one of its own needs the memory. */
export function releaseModel(): void {
  if (!resident) return;
  const { model, adapters } = resident;
  resident = undefined;
  for (const adapter of adapters.values()) adapter[Symbol.dispose]();
  model[Symbol.dispose]();
}
