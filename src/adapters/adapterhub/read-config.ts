/** `adapter_config.json` and `adapter_fusion_config.json` as AdapterHub writes them (adapters/loading.py). */
import { existsSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { GraftError, parseWith } from '../../base/index.ts';
import { readJsonObject } from '../../io/index.ts';
import { methods } from '../../methods/index.ts';
import type { SavedConfig } from '../layout.ts';

/** The release of AdapterHub whose layout Graft writes. */
export const version = 'adapters.1.3.0';

export const configNames = { adapter: 'adapter_config.json', fusion: 'adapter_fusion_config.json' } as const;

/** Whether a directory is in AdapterHub's layout. */
export function isAdapterHub(dir: string): boolean {
  if (existsSync(join(dir, configNames.fusion))) return true;
  const file = join(dir, configNames.adapter);
  if (!existsSync(file)) return false;
  const raw = readJsonObject(file);
  return !('peft_type' in raw) && 'config' in raw && 'model_type' in raw;
}

/** Names of configs in older releases. */
const olderConfigNames: Readonly<Record<string, string>> = {
  pfeiffer: 'seq_bn',
  houlsby: 'double_seq_bn',
  'pfeiffer+inv': 'seq_bn_inv',
  'houlsby+inv': 'double_seq_bn_inv',
  parallel: 'par_bn',
  scaled_parallel: 'scaled_par_bn',
};

/** Today's fields from a file of any release (adapters/configuration/adapter_config.py, adapters/utils.py ACTIVATION_RENAME). */
function currentFields({ invertible_adapter: inv, ...fields }: Record<string, unknown>, release: unknown) {
  const nested = inv as { block_type: string; reduction_factor: number } | null | undefined;
  if (nested)
    Object.assign(fields, { inv_adapter: nested.block_type, inv_adapter_reduction_factor: nested.reduction_factor });
  if (release === undefined) {
    if (fields.non_linearity === 'gelu') fields.non_linearity = 'gelu_new';
    else if (fields.non_linearity === 'gelu_orig') fields.non_linearity = 'gelu';
  }
  return fields;
}

/** The config of a bottleneck adapter or a fusion. @throws GraftError 'input' for methods and fields that Graft does not read */
export function readAdapterHubConfig(dir: string): SavedConfig {
  const isFusion = existsSync(join(dir, configNames.fusion));
  const place = join(dir, configNames[isFusion ? 'fusion' : 'adapter']);
  const file = readJsonObject(place);
  const { model_name: base, name } = file;
  const shared = { name: String(name ?? basename(dir)), base: typeof base === 'string' ? base : undefined };
  return isFusion
    ? { ...shared, method: 'fusion', config: fusionConfigOf(file, dir, shared.name, place) }
    : { ...shared, method: 'bottleneck', config: bottleneckConfigOf(file, place) };
}

function fusionConfigOf(file: Readonly<Record<string, unknown>>, dir: string, name: string, place: string) {
  const names = Array.isArray(file.adapter_names) ? file.adapter_names.map(String) : name.split(',');
  const { temperature, key, query, value, value_initialized: _, ...rest } = file.config as Record<string, unknown>;
  if (temperature || key === false || query === false) {
    throw new GraftError('input', 'this fusion has a temperature, or no key or query, which Graft does not support', {
      place,
    });
  }
  const config = {
    config: value === false ? 'static' : 'dynamic',
    ...rest,
    ...(file.graft as object),
    adapters: names.map((child) => dirOfFused(dir, child)),
  };
  return parseWith(methods.fusion.config, config, place, 'input');
}

/** The directory of an adapter that a fusion names: in the fusion's own directory, as Graft saves it, or next to it. */
function dirOfFused(dir: string, name: string): string {
  const found = [join(dir, name), join(dirname(resolve(dir)), name)].find(isAdapterHub);
  if (found) return found;
  throw new GraftError(
    'input',
    `the fusion uses the adapter '${name}', which was not found in its directory or next to it`,
    {
      place: dir,
    },
  );
}

function bottleneckConfigOf(file: Readonly<Record<string, unknown>>, place: string) {
  const { config: raw, model_class, version: release } = file;
  if (typeof raw === 'string') {
    return parseWith(methods.bottleneck.config, { config: olderConfigNames[raw] ?? raw }, place, 'input');
  }
  const { architecture = null, ...fields } = currentFields((raw ?? {}) as Record<string, unknown>, release);
  if (architecture !== null) {
    throw new GraftError('input', `this is AdapterHub's ${architecture}, which Graft does not load onto a model`, {
      place,
      ...(architecture === 'lora' && { hint: 'Try graft convert --to peft' }),
    });
  }
  // AdapterHub's own model classes undo the invertible block before the head; the classes of transformers do not.
  const inverse_before_head = Boolean(fields.inv_adapter) && /(AdapterModel|ModelWithHeads)$/.test(String(model_class));
  return parseWith(methods.bottleneck.config, { ...fields, inverse_before_head }, place, 'input');
}
