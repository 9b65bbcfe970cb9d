/** Methods that are settings of others (quantisation-aware training), saved beside what these write: `graft.json`, and their tensors. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { complete } from '../base/index.ts';
import { openSafetensors, writeSafetensors } from '../io/index.ts';
import {
  type Adapter,
  type AttachedAdapter,
  attachMethods,
  type Method,
  type MethodChoice,
  methods,
} from '../methods/index.ts';
import type { Model } from '../nn/index.ts';
import { type GraftFile, readGraftFile, writeGraftFile } from './adapter-dir.ts';
import { fillTensors, tensorToWrite } from './tensor-files.ts';

const tensorsName = 'settings.safetensors';

/** The adapters whose settings are saved beside the others. */
export const settingsOf = (parts: readonly Adapter[]): Adapter[] => parts.filter(({ writes }) => writes === 'settings');

/** The adapters that are written themselves. */
export const writtenParts = (parts: readonly Adapter[]): Adapter[] =>
  parts.filter(({ writes }) => writes !== 'settings' && writes !== 'nothing');

/** The names of the methods whose settings were saved with an adapter. */
export const settingNames = (dir: string): string[] =>
  (readGraftFile(dir).settings ?? []).map(({ type }) => String(type));

/** Their configs as they stand in `graft.json`. */
export const savedSettings = (settings: readonly Adapter[]): Pick<GraftFile, 'settings'> =>
  settings.length > 0 ? { settings: settings.map(({ method, config }) => ({ type: method, ...config })) } : {};

const tensorsOf = (settings: readonly Adapter[]) =>
  new Map(settings.flatMap(({ parameters }, i) => [...parameters].map(([key, t]) => [`${i}.${key}`, t] as const)));

/** Writes their tensors into a directory; no file where they have none. */
export function writeSettingsTensors(dir: string, settings: readonly Adapter[]): void {
  const tensors = tensorsOf(settings);
  if (tensors.size > 0) writeSafetensors(join(dir, tensorsName), [...tensors].map(tensorToWrite), { format: 'pt' });
}

/** Writes all of them into the directory of a model. */
export function writeSettings(dir: string, settings: readonly Adapter[]): void {
  writeGraftFile(dir, savedSettings(settings));
  writeSettingsTensors(dir, settings);
}

/** A setting's config without what only training reads, such as the step at which it begins. */
function lasting({ type, ...config }: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const { trainingOnly = [] } = methods[type as keyof typeof methods] as Method<unknown>;
  return { type, ...Object.fromEntries(Object.entries(config).filter(([field]) => !trainingOnly.includes(field))) };
}

/** Whether settings are those that were saved in a directory: tensors saved with them are for these only. */
export function areSaved(dir: string, settings: readonly Adapter[]): boolean {
  const [given, saved] = [savedSettings(settings), readGraftFile(dir)].map(({ settings: each = [] }) =>
    JSON.parse(JSON.stringify(each.map(lasting))),
  );
  return isDeepStrictEqual(given, saved);
}

/** Fills their tensors from a directory. @throws GraftError 'mismatch' for tensors that do not fit, 'input' for a missing file */
export function loadSettings(dir: string, settings: readonly Adapter[]): void {
  const tensors = tensorsOf(settings);
  const file = join(dir, tensorsName);
  if (tensors.size === 0 && !existsSync(file)) return;
  using source = openSafetensors(file);
  complete(fillTensors(source, tensors, file));
}

/** Attaches the settings that were saved with a whole model; undefined where there are none. @throws as `loadSettings` */
export function attachSettings(model: Model, dir: string): AttachedAdapter | undefined {
  const { settings = [] } = readGraftFile(dir);
  if (settings.length === 0) return undefined;
  // They stand beside the method that trained the model.
  const choices = [{ type: 'full' }, ...settings] as MethodChoice[];
  const adapter = attachMethods(model, choices, 0, { loading: true });
  try {
    loadSettings(dir, settingsOf(adapter.parts));
    return adapter;
  } catch (cause) {
    adapter.detach();
    throw cause;
  }
}
