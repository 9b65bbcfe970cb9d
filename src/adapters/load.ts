/**
 * Adapters on disk. One method: the directory that PEFT knows, or AdapterHub for bottleneck adapters; they are told apart
 * by content. Several methods: one such directory for each, `0-lora`, `1-…`. What these formats have no place for stands
 * beside it in `graft.json`.
 */
import { existsSync, mkdirSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import { readJsonObject, type WeightEntry, writeDirectory } from '../io/index.ts';
import {
  type Adapter,
  type AttachContext,
  type AttachedAdapter,
  attachMethods,
  type Method,
  type MethodChoice,
  methods,
} from '../methods/index.ts';
import type { LoadOptions } from '../models/index.ts';
import { type Model, namedModules, type TaskHead } from '../nn/index.ts';
import type { Tensor } from '../tensor/index.ts';
import {
  besideHead,
  fillAdapterHub,
  hasHead,
  isAdapterHub,
  nameFor,
  readAdapterHubConfig,
  savedAdapterHub,
  storedByAdapterHub,
  taskOfAdapterHub,
  writeAdapterHub,
} from './adapterhub/index.ts';
import {
  fillPeft,
  headSizeOf,
  readPeftConfig,
  type SaveOptions,
  storedByPeft,
  taskNameOf,
  writePeft,
} from './peft/index.ts';

/** `graft.json` of an adapter. */
interface GraftFile {
  /** Folders of the methods, in the order in which they go on the model. */
  readonly parts?: readonly string[];
  /** Numbers of those that are not trained. */
  readonly frozen?: readonly number[];
  readonly task?: TaskHead;
  /** Of rows that do not say which of several tasks they are of. */
  readonly taskNumber?: number;
}

const besideOf = (dir: string): GraftFile => {
  const file = join(dir, 'graft.json');
  return existsSync(file) ? (readJsonObject(file) as GraftFile) : {};
};

function partsOf(dir: string): string[] {
  const { parts } = besideOf(dir);
  if (parts) return parts.map((part) => join(dir, part));
  const folder = !isAdapter(dir) && statSync(dir, { throwIfNoEntry: false })?.isDirectory();
  const inside = folder ? readdirSync(dir).map((name) => join(dir, name)) : [];
  const adapters = inside.filter(isAdapter);
  if (adapters.length === 0) return [dir];
  throw new GraftError('usage', 'there is an adapter for each of several tasks here', {
    place: dir,
    hint: `Name one: ${adapters.join(', ')}`,
  });
}

/** Whether a directory holds an adapter, of one method or several. */
export const isAdapter = (dir: string): boolean =>
  besideOf(dir).parts !== undefined ||
  ['adapter_config.json', 'adapter_fusion_config.json'].some((name) => existsSync(join(dir, name)));

/** Every tensor that an adapter's directory holds. */
export const storedTensors = (dir: string): WeightEntry[] =>
  partsOf(dir).flatMap((part) => (isAdapterHub(part) ? storedByAdapterHub(part) : storedByPeft(part)));

/** An adapter without what is on modules that `host` has and `model`, which shares its body, has not. */
function partFor(model: Model, host: Model, part: Adapter): Adapter {
  if (host === model) return part;
  const there = new Set([...namedModules(model.root)].map(([path]) => `${path}.`));
  const lacking = [...namedModules(host.root)].map(([path]) => `${path}.`).filter((path) => !there.has(path));
  const kept = (tensors: ReadonlyMap<string, Tensor>) =>
    new Map([...tensors].filter(([key]) => !lacking.some((path) => key.startsWith(path))));
  const { parameters, savedTensors } = part;
  return { ...part, parameters: kept(parameters), ...(savedTensors && { savedTensors: () => kept(savedTensors()) }) };
}

/** Saves an adapter so that PEFT, or AdapterHub, loads it; replaces `dir` at once or not at all. */
export function saveAdapter(model: Model, adapter: Adapter | AttachedAdapter, dir: string, options: SaveOptions): void {
  const { host = model, taskNumber } = options;
  const parts = ('parts' in adapter ? adapter.parts : [adapter]).map((part) => partFor(model, host, part));
  const head = 'head' in adapter ? adapter.head : new Map();
  const folders = parts.length === 1 ? undefined : parts.map(({ method }, i) => `${i}-${method}`);
  const frozen = parts.flatMap((part, i) => (part.frozen ? [i] : []));
  const beside: GraftFile = {
    ...(folders && { parts: folders }),
    ...(frozen.length > 0 && { frozen }),
    ...(model.task.labels.length > 0 && { task: model.task }),
    ...(taskNumber !== undefined && { taskNumber }),
  };
  writeDirectory(dir, (work) => {
    parts.forEach((part, i) => {
      const to = folders ? join(work, folders[i]!) : work;
      if (folders) mkdirSync(to);
      const own = i === 0 ? head : new Map();
      if ((methods[part.method as keyof typeof methods] as Method<unknown>).adapterHub)
        writeAdapterHub(model, part, own, to, options, folders ? `${nameFor(dir)}_${i}` : nameFor(dir));
      else writePeft(model, part, own, to, options);
    });
    if (Object.keys(beside).length > 0) {
      writeFileSync(join(work, 'graft.json'), `${JSON.stringify(beside, null, 2)}\n`);
    }
  });
}

function readPart(dir: string): { method: string; config: unknown; base: string | undefined } {
  if (isAdapterHub(dir)) return readAdapterHubConfig(dir);
  const { method, ...rest } = readPeftConfig(dir);
  return { method: method.name, ...rest };
}

/** The methods of a saved adapter, each with its directory. @throws GraftError 'input' for what is no adapter that Graft reads */
export function readAdapterConfig(dir: string): {
  parts: { dir: string; choice: MethodChoice }[];
  base: string | undefined;
} {
  let base: string | undefined;
  const { frozen = [] } = besideOf(dir);
  const parts = partsOf(dir).map((part, i) => {
    const { method, config, base: said } = readPart(part);
    base ??= said;
    const train = frozen.includes(i) ? { train: false } : {};
    return { dir: part, choice: { ...(config as object), type: method, ...train } as MethodChoice };
  });
  return { parts, base };
}

/** Which of several tasks rows are of that do not say so, where the adapter knows. */
export const taskNumberOf = (dir: string): number | undefined => besideOf(dir).taskNumber;

/** What a model is to be loaded for, to carry this adapter. */
export function taskOfAdapter(dir: string): Pick<LoadOptions, 'task' | 'labels' | 'multiLabel'> {
  const { task } = besideOf(dir);
  if (task) return { task: task.name, labels: task.labels, ...(task.multiLabel && { multiLabel: true }) };
  const [first] = partsOf(dir) as [string];
  if (isAdapterHub(first)) return taskOfAdapterHub(first);
  readPeftConfig(first); // refuses what is of another format
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
  const [first] = partsOf(dir) as [string];
  // A head that is for no task of ours, as the one of a language model beside AdapterHub's adapter.
  if (said.task === undefined && isAdapterHub(first) && hasHead(first)) return false;
  return (said.task ?? name) === name && (said.labels ?? labels).length === labels.length;
}

/**
 * Puts a saved adapter on `model`.
 * @param head `own`: the model keeps its head, and one in the file is left out, so that tasks share what is below it
 * @param training fields that the file does not hold, by part
 * @throws GraftError 'input' for a broken or foreign file, 'mismatch' listing every tensor that does not fit the model
 */
export function loadAdapter(
  model: Model,
  dir: string,
  head: 'file' | 'own' = 'file',
  training: readonly object[] = [],
): AttachedAdapter {
  const { parts } = readAdapterConfig(dir);
  let adapter: AttachedAdapter;
  try {
    adapter = attachMethods(
      model,
      parts.map(({ choice }, i) => ({ ...choice, ...training[i] })),
      0,
      {
        ...savedAdapters(model),
        loading: true,
        headModules: head === 'file' && isAdapterHub(parts[0]!.dir) ? besideHead(model, parts[0]!.dir) : [],
      },
    );
  } catch (cause) {
    if (!(cause instanceof GraftError)) throw cause;
    throw new GraftError('mismatch', `the adapter does not fit this base: ${cause.message}`, { place: dir, cause });
  }
  try {
    parts.forEach((part, i) => {
      const own = head === 'own' ? undefined : i === 0 ? adapter.head : new Map<string, Tensor>();
      if (isAdapterHub(part.dir)) fillAdapterHub(model, part.dir, adapter.parts[i]!, own);
      else fillPeft(part.dir, adapter.parts[i]!, own);
    });
    return adapter;
  } catch (cause) {
    adapter.detach();
    throw cause;
  }
}

/** What lets methods work with saved adapters. */
export function savedAdapters(model: Model): Required<Pick<AttachContext, 'saved'>> {
  return {
    saved(dir) {
      const parts = partsOf(dir);
      if (parts.length > 1) {
        throw new GraftError('usage', `${parts.length} methods were saved together here`, {
          place: dir,
          hint: `Name the folder of one: ${parts.join(', ')}`,
        });
      }
      const [part] = parts as [string];
      if (isAdapterHub(part)) return savedAdapterHub(model, part);
      const { method, config } = readPeftConfig(part);
      return {
        name: nameFor(part),
        method: method.name,
        config,
        fill: (adapter) => fillPeft(part, adapter as Adapter, undefined),
      };
    },
  };
}
