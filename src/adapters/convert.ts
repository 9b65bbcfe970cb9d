/**
 * Conversion of adapters from one format to another, without a model. The formats share the name `adapter_config.json`, so
 * they are detected by its contents. LoRA is converted among all three, IA3 between PEFT and AdapterHub; what the target
 * does not support exactly is refused with the reason.
 */
import { GraftError } from '../base/index.ts';
import { requireNew, writeDirectory } from '../io/index.ts';
import { adapterNameFor } from './adapter-names.ts';
import { adapterHubUpdates } from './adapterhub/index.ts';
import { taskOfAdapter } from './load.ts';
import { mlxUpdates } from './mlx/index.ts';
import { peftUpdates } from './peft/index.ts';
import { notConvertible, type UpdateFormat } from './update-format.ts';

/** The formats that adapters are converted among: those of PEFT, AdapterHub and mlx-lm. */
export const adapterFormats = ['peft', 'adapterhub', 'mlx'] as const;
/** A format of adapter directories. */
export type AdapterFormat = (typeof adapterFormats)[number];

const formats: Readonly<Record<AdapterFormat, UpdateFormat>> = {
  peft: peftUpdates,
  adapterhub: adapterHubUpdates,
  mlx: mlxUpdates,
};

/** Returns the format of an adapter directory, which is detected from its files. @throws GraftError 'input' where it is none of them */
export function formatOf(dir: string): AdapterFormat {
  const format = adapterFormats.find((name) => formats[name].holds(dir));
  if (format) return format;
  throw new GraftError('input', 'this is not an adapter of PEFT, AdapterHub or mlx-lm', { place: dir });
}

/**
 * Writes the adapter in `from` in another format into the new directory `to`.
 * @returns the format of `from`, and the number of updated layers
 * @throws GraftError 'usage' with the reason where the format does not support what the adapter does
 */
export function convertAdapter(
  from: string,
  to: string,
  format: AdapterFormat,
): { from: AdapterFormat; layers: number } {
  requireNew(to);
  const sourceFormat = formatOf(from);
  if (sourceFormat === format) throw notConvertible(`the adapter is already in the format ${format}`, from);
  const updates = formats[sourceFormat].read(from);
  const head = updates.head.length > 0 ? taskOfAdapter(from) : {};
  writeDirectory(to, (work) => {
    formats[format].write(updates, work, { name: adapterNameFor(to), source: from, head });
  });
  return { from: sourceFormat, layers: updates.layers.size };
}
