/**
 * The directory of a saved adapter: the files of one method, or a folder for each of several methods (`0-lora`, `1-…`).
 * What the layouts of PEFT and AdapterHub do not support is in the file `graft.json`.
 */
import { existsSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import { readJsonObject } from '../io/index.ts';
import type { TaskHead } from '../nn/index.ts';
import { isGgufAdapter } from './gguf/index.ts';

/** `graft.json` of an adapter. */
export interface GraftFile {
  /** Folders of the methods, in the order in which they are attached. */
  readonly parts?: readonly string[];
  /** Indexes of the methods that are not trained. */
  readonly frozen?: readonly number[];
  readonly task?: TaskHead;
  /** Methods that are settings of the others, attached after them: their configs, with their `type`. */
  readonly settings?: readonly Readonly<Record<string, unknown>>[];
  /** Index of the task that rows without a task number belong to, for an adapter of several tasks. */
  readonly taskNumber?: number;
  /** How the rows were read that it was trained on (data-settings.ts). */
  readonly data?: Readonly<Record<string, unknown>>;
}

const fileName = 'graft.json';

/** The contents of the directory's `graft.json`; empty where it has none. */
export const readGraftFile = (dir: string): GraftFile => {
  const file = join(dir, fileName);
  return existsSync(file) ? (readJsonObject(file) as GraftFile) : {};
};

/** Writes `graft.json` into a directory; no file where the content is empty. */
export function writeGraftFile(dir: string, content: GraftFile): void {
  if (Object.keys(content).length === 0) return;
  writeFileSync(join(dir, fileName), `${JSON.stringify(content, null, 2)}\n`);
}

/** Whether a directory holds an adapter, or a GGUF file is one, of one method or several. */
export const isAdapter = (dir: string): boolean =>
  readGraftFile(dir).parts !== undefined ||
  isGgufAdapter(dir) ||
  ['adapter_config.json', 'adapter_fusion_config.json'].some((name) => existsSync(join(dir, name)));

/**
 * The adapter that a path names: itself, or the result of the run whose directory it is.
 * @throws GraftError 'usage' for the directory of a run that wrote a model, of several tasks, or that has no result
 */
export function adapterIn(path: string): string {
  if (isAdapter(path) || !existsSync(join(path, 'run.json'))) return path;
  const dir = join(path, 'adapter');
  if (isAdapter(dir)) return dir;
  if (existsSync(join(path, 'model')))
    throw new GraftError('usage', 'this run wrote a model, and no adapter', {
      place: path,
      hint: `Name it as the model: ${join(path, 'model')}`,
    });
  if (!existsSync(dir))
    throw new GraftError('usage', 'this run has no adapter: it has not ended', {
      place: path,
      hint: 'Run its recipe again, which resumes it',
    });
  partDirs(dir); // names the adapters of the tasks
  return dir;
}

/**
 * The directories of the adapter's methods, in the order in which they are attached.
 * @throws GraftError 'usage' for a directory with an adapter for each of several tasks
 */
export function partDirs(dir: string): string[] {
  const { parts } = readGraftFile(dir);
  if (parts) return parts.map((part) => join(dir, part));
  const isFolder = !isAdapter(dir) && statSync(dir, { throwIfNoEntry: false })?.isDirectory();
  const subfolders = isFolder ? readdirSync(dir).map((name) => join(dir, name)) : [];
  const adapters = subfolders.filter(isAdapter);
  if (adapters.length === 0) return [dir];
  throw new GraftError('usage', 'this directory holds an adapter for each of several tasks', {
    place: dir,
    hint: `Name one: ${adapters.join(', ')}`,
  });
}
