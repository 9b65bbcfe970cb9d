/**
 * Conversion of adapters from one format to another, without a model. The formats share the name `adapter_config.json`, so
 * they are detected by its contents. LoRA is converted among all of them, IA3 between PEFT and AdapterHub; what the target
 * does not support exactly is refused with the reason.
 */
import { GraftError } from '../base/index.ts';
import { requireNew, writeDirectory } from '../io/index.ts';
import { adapterNameFor } from './adapter-names.ts';
import { adapterHubUpdates } from './adapterhub/index.ts';
import { ggufUpdates } from './gguf/index.ts';
import { taskOfAdapter } from './load.ts';
import { mlxUpdates } from './mlx/index.ts';
import { peftUpdates } from './peft/index.ts';
import { settingNames } from './settings.ts';
import { notConvertible, type UpdateFormat } from './update-format.ts';

/** The formats that adapters are converted among: those of PEFT, AdapterHub, mlx-lm and llama.cpp. */
export const adapterFormats = ['peft', 'adapterhub', 'mlx', 'gguf'] as const;
/** A format of adapters: a directory, or of `gguf` a file. */
export type AdapterFormat = (typeof adapterFormats)[number];

const formats: Readonly<Record<AdapterFormat, UpdateFormat>> = {
  peft: peftUpdates,
  adapterhub: adapterHubUpdates,
  mlx: mlxUpdates,
  gguf: ggufUpdates,
};

/** Returns the format of an adapter, which is detected from its files. @throws GraftError 'input' where it is none of them */
export function formatOf(dir: string): AdapterFormat {
  const format = adapterFormats.find((name) => formats[name].holds(dir));
  if (format) return format;
  throw new GraftError('input', 'this is not an adapter of PEFT, AdapterHub, mlx-lm or llama.cpp', { place: dir });
}

/**
 * Writes the adapter in `from` in another format into the new directory `to`, or with `gguf` to a new file.
 * @param base the base model's directory or GGUF file, whose config `gguf` needs. Default: the one that the adapter names
 * @returns the format of `from`, the number of updated layers, and the methods whose settings the other format has no place for
 * @throws GraftError 'usage' with the reason where the format does not support what the adapter does
 */
export function convertAdapter(
  from: string,
  to: string,
  format: AdapterFormat,
  { base }: { readonly base?: string | undefined } = {},
): { from: AdapterFormat; layers: number; leftOut: string[] } {
  requireNew(to);
  const sourceFormat = formatOf(from);
  if (sourceFormat === format) throw notConvertible(`the adapter is already in the format ${format}`, from);
  if (base !== undefined && !formats[format].readsBase && !formats[sourceFormat].readsBase)
    throw new GraftError('usage', `base is not read from ${sourceFormat} to ${format}`, {
      place: 'base (--base)',
      hint: 'Leave it out: it is for gguf',
    });
  const updates = formats[sourceFormat].read(from, base);
  const head = updates.head.length > 0 ? taskOfAdapter(from) : {};
  const write = (work: string) =>
    formats[format].write(updates, work, { name: adapterNameFor(to), source: from, head, base });
  if (!formats[format].isFile) writeDirectory(to, write);
  else if (to.endsWith('.gguf')) write(to);
  else throw notConvertible(`an adapter in the format ${format} is a file, and '${to}' does not end in .gguf`, from);
  return {
    from: sourceFormat,
    layers: updates.layers.size,
    leftOut: formats[sourceFormat].isFile ? [] : settingNames(from),
  };
}
