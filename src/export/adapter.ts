/**
 * Adapters on disk. One method: the directory that PEFT knows. Several methods: one such directory for each, `0-lora`,
 * `1-…`. What PEFT's format has no place for stands beside it in `graft.json`.
 */
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import { readJsonObject, writeDirectory } from '../io/index.ts';
import { type Adapter, type Attached, attachMethods, type MethodChoice } from '../methods/index.ts';
import type { LoadOptions } from '../models/index.ts';
import type { Model, TaskHead } from '../nn/index.ts';
import { fillPeft, headSizeOf, readPeftConfig, type SaveOptions, taskNameOf, writePeft } from './peft.ts';

/** `graft.json` of an adapter. */
interface Beside {
  /** Folders of the methods, in the order in which they go on the model. */
  readonly parts?: readonly string[];
  readonly task?: TaskHead;
}

const besideOf = (dir: string): Beside => {
  const file = join(dir, 'graft.json');
  return existsSync(file) ? (readJsonObject(file) as Beside) : {};
};

const partsOf = (dir: string): string[] => besideOf(dir).parts?.map((part) => join(dir, part)) ?? [dir];

/** Saves an adapter so that PEFT loads it; replaces `dir` at once or not at all. */
export function saveAdapter(model: Model, adapter: Adapter | Attached, dir: string, options: SaveOptions): void {
  const parts = 'parts' in adapter ? adapter.parts : [adapter];
  const head = 'head' in adapter ? adapter.head : new Map();
  const folders = parts.length === 1 ? undefined : parts.map(({ method }, i) => `${i}-${method}`);
  const beside: Beside = {
    ...(folders && { parts: folders }),
    ...(model.task.labels.length > 0 && { task: model.task }),
  };
  writeDirectory(dir, (work) => {
    parts.forEach((part, i) => {
      const to = folders ? join(work, folders[i]!) : work;
      if (folders) mkdirSync(to);
      writePeft(model, part, i === 0 ? head : new Map(), to, options);
    });
    if (Object.keys(beside).length > 0) {
      writeFileSync(join(work, 'graft.json'), `${JSON.stringify(beside, null, 2)}\n`);
    }
  });
}

/** The methods of a saved adapter, each with its directory. @throws GraftError 'input' for what is no adapter that Graft reads */
export function readAdapterConfig(dir: string): {
  parts: { dir: string; choice: MethodChoice }[];
  base: string | undefined;
} {
  let base: string | undefined;
  const parts = partsOf(dir).map((part) => {
    const { method, config, base: said } = readPeftConfig(part);
    base ??= said;
    return { dir: part, choice: { ...(config as object), type: method.name } as MethodChoice };
  });
  return { parts, base };
}

/** What a model is to be loaded for, to carry this adapter. */
export function taskOfAdapter(dir: string): Pick<LoadOptions, 'task' | 'labels' | 'multiLabel'> {
  const { task } = besideOf(dir);
  if (task) return { task: task.name, labels: task.labels, ...(task.multiLabel && { multiLabel: true }) };
  const [first] = partsOf(dir) as [string];
  const name = taskNameOf(first);
  const size = headSizeOf(first);
  return {
    ...(name && { task: name }),
    ...(size !== undefined && { labels: Array.from({ length: size }, (_, i) => `LABEL_${i}`) }),
  };
}

/** Whether an adapter's head is for what `model` is loaded for. If not, it is loaded under the model's own head. */
export function headFits(model: Model, dir: string): boolean {
  const { name, labels } = model.task;
  const exact = besideOf(dir).task;
  if (exact) return exact.name === name && JSON.stringify(exact.labels) === JSON.stringify(labels);
  const said = taskOfAdapter(dir);
  return (said.task ?? name) === name && (said.labels ?? labels).length === labels.length;
}

/**
 * Puts a saved adapter on `model`.
 * @param head `own`: the model keeps its head, and one in the file is left out, so that tasks share what is below it
 * @throws GraftError 'input' for a broken or foreign file, 'mismatch' listing every tensor that does not fit the model
 */
export function loadAdapter(model: Model, dir: string, head: 'file' | 'own' = 'file'): Attached {
  const { parts } = readAdapterConfig(dir);
  let adapter: Attached;
  try {
    adapter = attachMethods(
      model,
      parts.map(({ choice }) => choice),
      0,
      { loading: true },
    );
  } catch (cause) {
    if (!(cause instanceof GraftError)) throw cause;
    throw new GraftError('mismatch', `the adapter does not fit this base: ${cause.message}`, { place: dir, cause });
  }
  try {
    parts.forEach((part, i) => {
      fillPeft(part.dir, adapter.parts[i]!, head === 'own' ? undefined : i === 0 ? adapter.head : new Map());
    });
    return adapter;
  } catch (cause) {
    adapter.detach();
    throw cause;
  }
}
