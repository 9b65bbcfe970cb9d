/**
 * Adapters from one format to another, without a model: PEFT's, AdapterHub's and mlx-lm's share the name
 * `adapter_config.json` and are told apart by content. LoRA goes among all three, IA3 between the first two; what a target
 * cannot say exactly is refused with the reason.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import { readJsonObject, requireNew, writeDirectory } from '../io/index.ts';
import { hubUpdates, isAdapterHub, nameFor } from './adapterhub/index.ts';
import { mlxUpdates } from './mlx/index.ts';
import { peftUpdates } from './peft/index.ts';
import { notConvertible, type UpdateFormat } from './updates.ts';

export const adapterFormats = ['peft', 'adapterhub', 'mlx'] as const;
export type AdapterFormat = (typeof adapterFormats)[number];

const formats: Readonly<Record<AdapterFormat, UpdateFormat>> = {
  peft: peftUpdates,
  adapterhub: hubUpdates,
  mlx: mlxUpdates,
};

/** The format of a directory. @throws GraftError 'input' where it is none of them */
export function formatOf(dir: string): AdapterFormat {
  const file = join(dir, 'adapter_config.json');
  if (existsSync(file)) {
    const config = readJsonObject(file);
    if ('peft_type' in config) return 'peft';
    if ('fine_tune_type' in config || 'lora_parameters' in config) return 'mlx';
  }
  if (isAdapterHub(dir)) return 'adapterhub';
  throw new GraftError('input', 'this is no adapter of PEFT, AdapterHub or mlx-lm', { place: dir });
}

/**
 * Writes the adapter in `from` as another format into the new directory `to`.
 * @throws GraftError 'usage' with the reason where the target has no place for it
 */
export function convertAdapter(
  from: string,
  to: string,
  format: AdapterFormat,
): { from: AdapterFormat; layers: number } {
  requireNew(to);
  const found = formatOf(from);
  if (found === format) throw notConvertible(`the adapter is in the format ${format} already`, from);
  const said = formats[found].read(from);
  writeDirectory(to, (work) => {
    formats[format].write(said, work, from, nameFor(to));
  });
  return { from: found, layers: said.layers.size };
}
