import { existsSync } from 'node:fs';
import { isAbsolute } from 'node:path';
import { complete, GraftError, type Steps } from '../base/index.ts';
import type { WeightEntry } from '../io/index.ts';
import { type AttachContext, type AttachedAdapter, attachMethods, type MethodChoice } from '../methods/index.ts';
import type { HeadOptions } from '../models/index.ts';
import type { Model } from '../nn/index.ts';
import type { Tensor } from '../tensor/index.ts';
import { partDirs, readGraftFile } from './adapter-dir.ts';
import { moduleName } from './adapter-names.ts';
import { layoutOf } from './registry.ts';
import { areSaved, loadSettings, settingsOf } from './settings.ts';

/** Every tensor that an adapter's directory holds. */
export const storedTensors = (dir: string): WeightEntry[] =>
  partDirs(dir).flatMap((part) => layoutOf(part).storedTensors(part));

/**
 * The methods of a saved adapter, each with its directory.
 * @throws GraftError 'input' for a directory that is not an adapter that Graft reads
 */
export function readAdapterConfig(dir: string): {
  parts: { dir: string; choice: MethodChoice }[];
  /** Methods that are settings of the others, attached after them. */
  settings: MethodChoice[];
  base: string | undefined;
} {
  let base: string | undefined;
  const { frozen = [], settings = [] } = readGraftFile(dir);
  const parts = partDirs(dir).map((part, i) => {
    const saved = layoutOf(part).readConfig(part);
    base ??= saved.base;
    const train = frozen.includes(i) ? { train: false } : {};
    return { dir: part, choice: { ...(saved.config as object), type: saved.method, ...train } as MethodChoice };
  });
  return { parts, settings: settings as unknown as MethodChoice[], base };
}

/**
 * The base of an adapter: its directory or file, or its hub id.
 * @throws GraftError 'usage' where the adapter names none, or one that is not there
 */
export function baseOfAdapter(dir: string): string {
  const { base } = readAdapterConfig(dir);
  const hint = 'Name the base as --model';
  if (!base) throw new GraftError('usage', 'the adapter does not say what its base is', { place: dir, hint });
  const isPath = isAbsolute(base) || base.startsWith('.') || base.split('/').length !== 2;
  if (existsSync(base) || !isPath) return base;
  throw new GraftError('usage', `the base of the adapter is not there: ${base}`, { place: dir, hint });
}

/** The index of the task that rows without a task number belong to, where the adapter has one. */
export const taskNumberOf = (dir: string): number | undefined => readGraftFile(dir).taskNumber;

/** The task and labels that a model has to be loaded for to carry this adapter. */
export function taskOfAdapter(dir: string): HeadOptions {
  const { task } = readGraftFile(dir);
  const [first] = partDirs(dir) as [string];
  const found = layoutOf(first).headOptions(first);
  if (!task) return found;
  const { vocabRows } = found;
  return {
    task: task.name,
    labels: task.labels,
    ...(task.multiLabel && { multiLabel: true }),
    ...(vocabRows !== undefined && { vocabRows }),
  };
}

/** Whether the adapter's head is for the task and labels of `model`. If not, load the adapter under the model's own head. */
export function headFits(model: Model, dir: string): boolean {
  const { name, labels } = model.task;
  const exact = readGraftFile(dir).task;
  if (exact) return exact.name === name && JSON.stringify(exact.labels) === JSON.stringify(labels);
  const saved = taskOfAdapter(dir);
  const [first] = partDirs(dir) as [string];
  if (layoutOf(first).hasUnknownHead(first)) return false;
  return (saved.task ?? name) === name && (saved.labels ?? labels).length === labels.length;
}

/**
 * Attaches a saved adapter to `model`.
 * @param head `own`: the model keeps its head, and a saved one is ignored, so that tasks can share the adapter
 * @param training config fields that the file does not hold, for each method
 * @param settings methods that are settings of the others; default: those that were saved with the adapter
 * @throws GraftError 'input' for a broken file or one of another format, 'mismatch' listing every tensor that does not fit
 */
export function loadAdapter(
  model: Model,
  dir: string,
  head: 'file' | 'own' = 'file',
  training: readonly object[] = [],
  settings?: readonly MethodChoice[],
): AttachedAdapter {
  const adapter = attachAsSaved(model, dir, head, training, settings);
  try {
    complete(filling(model, dir, adapter, head, settings));
    return adapter;
  } catch (cause) {
    adapter.detach();
    throw cause;
  }
}

/**
 * As `loadAdapter`, in steps. Between them the adapter is switched off, so that other passes may run; one that is left there is taken
 * off the model.
 */
export function* loadingAdapter(model: Model, dir: string, head: 'file' | 'own'): Steps<AttachedAdapter> {
  const adapter = attachAsSaved(model, dir, head);
  let loaded = false;
  try {
    yield* switchedOff(adapter, filling(model, dir, adapter, head));
    loaded = true;
    return adapter;
  } finally {
    if (!loaded) adapter.detach();
  }
}

/** Takes steps that are about an adapter which is on a model, with the adapter switched off between them. */
export function* switchedOff<T>(adapter: AttachedAdapter, steps: Steps<T>): Steps<T> {
  // To switch off what changes or rounds the base's weights takes longer than the steps.
  if (adapter.parts.some(({ changes, writes }) => changes?.size || writes === 'settings')) return complete(steps);
  try {
    let step = steps.next();
    while (!step.done) {
      adapter.enabled = false;
      yield;
      adapter.enabled = true;
      step = steps.next();
    }
    return step.value;
  } finally {
    steps.return(undefined as never);
  }
}

/** Attaches an adapter as it was saved, without the values of its tensors. */
function attachAsSaved(
  model: Model,
  dir: string,
  head: 'file' | 'own',
  training: readonly object[] = [],
  settings?: readonly MethodChoice[],
): AttachedAdapter {
  const { parts, settings: saved } = readAdapterConfig(dir);
  const [first] = parts as [(typeof parts)[number]];
  try {
    return attachMethods(
      model,
      [...parts.map(({ choice }, i) => ({ ...choice, ...training[i] })), ...(settings ?? saved)],
      0,
      {
        ...savedAdapters(model),
        loading: true,
        headModules: head === 'file' ? layoutOf(first.dir).headModules(model, first.dir) : [],
      },
    );
  } catch (cause) {
    if (!(cause instanceof GraftError)) throw cause;
    throw new GraftError('mismatch', `the adapter does not fit this base: ${cause.message}`, { place: dir, cause });
  }
}

/** Copies the values of its tensors into an adapter. */
function* filling(
  model: Model,
  dir: string,
  adapter: AttachedAdapter,
  head: 'file' | 'own',
  settings?: readonly MethodChoice[],
): Steps<void> {
  yield; // values come next: `stepsWithoutValues` ends here
  try {
    for (const [i, part] of partDirs(dir).entries()) {
      const partHead = head === 'own' ? undefined : i === 0 ? adapter.head : new Map<string, Tensor>();
      yield* layoutOf(part).load(model, part, adapter.parts[i]!, partHead);
    }
  } catch (cause) {
    throw resizedOrOther(cause, model, dir);
  }
  const attached = settingsOf(adapter.parts);
  if (!settings || areSaved(dir, attached)) loadSettings(dir, attached);
}

/** Why an adapter does not fit: where it has tables for another vocabulary, that, and what can be done. */
function resizedOrOther(cause: unknown, { vocabSize }: Model, dir: string): unknown {
  if (!(cause instanceof GraftError) || cause.kind !== 'mismatch') return cause;
  const { vocabRows } = taskOfAdapter(dir);
  if (vocabRows === undefined || vocabRows === vocabSize) return cause;
  const problem = `the adapter has tables for ${vocabRows} tokens, and this base, as it is loaded here, has ${vocabSize}`;
  return new GraftError('mismatch', problem, {
    place: dir,
    hint: 'Commands that load a model for one adapter resize it; to train or serve, merge the adapter into a model of its own first (graft merge)',
    cause,
  });
}

/** What methods that work with saved adapters need to read them, for `attachMethods`. */
export function savedAdapters(model: Model): Required<Pick<AttachContext, 'saved'>> {
  return {
    saved(dir) {
      const parts = partDirs(dir);
      if (parts.length > 1) {
        throw new GraftError('usage', `this directory holds ${parts.length} methods`, {
          place: dir,
          hint: `Name the folder of one: ${parts.join(', ')}`,
        });
      }
      const [part] = parts as [string];
      const layout = layoutOf(part);
      const { name, method, config } = layout.readConfig(part);
      return {
        name: moduleName(name),
        method,
        config,
        hasHead: layout.headOptions(part).labels !== undefined,
        fill: (adapter) => complete(layout.load(model, part, adapter, undefined)),
      };
    },
  };
}
