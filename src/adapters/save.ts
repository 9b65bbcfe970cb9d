import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { writeDirectory } from '../io/index.ts';
import type { Adapter, AttachedAdapter } from '../methods/index.ts';
import { type Model, namedModules } from '../nn/index.ts';
import type { Tensor } from '../tensor/index.ts';
import { type GraftFile, writeGraftFile } from './adapter-dir.ts';
import { adapterNameFor } from './adapter-names.ts';
import { layoutFor } from './registry.ts';
import { savedSettings, settingsOf, writeSettingsTensors, writtenParts } from './settings.ts';

/** Options of `saveAdapter`. */
export interface SaveOptions {
  /** Path or id of the base, for whoever loads the adapter. */
  readonly base: string;
  /** The model that the adapter is attached to, where it is saved for another model with the same body. */
  readonly host?: Model;
  /** Index of the task that rows without a task number belong to, for an adapter of several tasks. */
  readonly taskNumber?: number;
  /** Is called before a tensor of the base is read, whose numbers may be elsewhere. */
  readonly present?: ((tensor: Tensor) => void) | undefined;
  /** How its rows were read, as `savedDataSettings` returns it. */
  readonly data?: Readonly<Record<string, unknown>>;
}

/** An adapter on `host` without the tensors of modules that `model`, which shares the body of `host`, does not have. */
function withoutHostModules(model: Model, host: Model, adapter: Adapter): Adapter {
  if (host === model) return adapter;
  const paths = new Set([...namedModules(model.root)].map(([path]) => `${path}.`));
  const hostOnly = [...namedModules(host.root)].map(([path]) => `${path}.`).filter((path) => !paths.has(path));
  const filtered = (tensors: ReadonlyMap<string, Tensor>) =>
    new Map([...tensors].filter(([key]) => !hostOnly.some((path) => key.startsWith(path))));
  const { parameters, savedTensors } = adapter;
  return {
    ...adapter,
    parameters: filtered(parameters),
    ...(savedTensors && { savedTensors: () => filtered(savedTensors()) }),
  };
}

/**
 * Saves an adapter, and its head, in PEFT's layout, or in AdapterHub's for methods that PEFT lacks. Several methods are a
 * folder each. `dir` is replaced as a whole or, if saving fails, left as it is.
 * @throws GraftError 'usage' for a method that no layout supports
 */
export function saveAdapter(model: Model, adapter: Adapter | AttachedAdapter, dir: string, options: SaveOptions): void {
  const { base, host = model, taskNumber, data, present } = options;
  const allParts = 'parts' in adapter ? adapter.parts : [adapter];
  const settings = settingsOf(allParts);
  const parts = writtenParts(allParts).map((part) => withoutHostModules(model, host, part));
  const head = 'head' in adapter ? adapter.head : new Map<string, Tensor>();
  const folders = parts.length === 1 ? undefined : parts.map(({ method }, i) => `${i}-${method}`);
  const frozen = parts.flatMap((part, i) => (part.frozen ? [i] : []));
  const graftFile: GraftFile = {
    ...(folders && { parts: folders }),
    ...(frozen.length > 0 && { frozen }),
    ...savedSettings(settings),
    ...(model.task.labels.length > 0 && { task: model.task }),
    ...(taskNumber !== undefined && { taskNumber }),
    ...(data && Object.keys(data).length > 0 && { data }),
  };
  const name = adapterNameFor(dir);
  writeDirectory(dir, (work) => {
    parts.forEach((part, i) => {
      const partDir = folders ? join(work, folders[i]!) : work;
      if (folders) mkdirSync(partDir);
      const partHead = i === 0 ? head : new Map<string, Tensor>();
      const partName = folders ? `${name}_${i}` : name;
      layoutFor(part.method).save(model, part, partHead, partDir, { base, name: partName, present });
    });
    writeGraftFile(work, graftFile);
    writeSettingsTensors(work, settings);
  });
}
