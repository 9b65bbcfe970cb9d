/**
 * Adapters on disk in AdapterHub's layout: `adapter_config.json` and `adapter.safetensors` (or a pickle) for one adapter,
 * `adapter_fusion_config.json` beside `model_adapter_fusion.safetensors` for a fusion, `head_config.json` beside
 * `model_head.safetensors` for a head (adapters/loading.py). Every key has the adapter's name in it.
 */
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { GraftError, parseWith } from '../../base/index.ts';
import {
  openSafetensors,
  openTorch,
  readJsonObject,
  type WeightEntry,
  type WeightSource,
  writeSafetensors,
} from '../../io/index.ts';
import { type Adapter, methods, type SavableAdapter, type SavedAdapter } from '../../methods/index.ts';
import type { Model } from '../../nn/index.ts';
import type { Tensor } from '../../tensor/index.ts';
import { entryOf, fill, type SaveOptions } from '../peft/index.ts';
import { fillHead, openHead, writeHead } from './head.ts';

/** The release whose layout this is. */
export const version = 'adapters.1.3.0';

/** Names of a file as safetensors and as torch.save writes it. */
const files = {
  adapter: ['adapter.safetensors', 'pytorch_adapter.bin'],
  fusion: ['model_adapter_fusion.safetensors', 'pytorch_model_adapter_fusion.bin'],
} as const;

const configNames = ['adapter_config.json', 'adapter_fusion_config.json'] as const;

/** Whether a directory is of this layout. */
export function isAdapterHub(dir: string): boolean {
  if (existsSync(join(dir, configNames[1]))) return true;
  const file = join(dir, configNames[0]);
  if (!existsSync(file)) return false;
  const raw = readJsonObject(file);
  return !('peft_type' in raw) && 'config' in raw && 'model_type' in raw;
}

/** Where a family has its bottlenecks, and the shared parts of an adapter. */
interface Layout {
  readonly base: string;
  /** Path of a block, `*` for its number. */
  readonly block: string;
  readonly mh_adapter: string;
  readonly output_adapter: string;
}

const beside = { mh_adapter: 'attention_adapters', output_adapter: 'output_adapters' };
const inside = { mh_adapter: 'attention.output', output_adapter: 'output' };

const layouts: Readonly<Record<string, Layout>> = {
  bert: { base: 'bert', block: 'bert.encoder.layer.*', ...inside },
  roberta: { base: 'roberta', block: 'roberta.encoder.layer.*', ...inside },
  'xlm-roberta': { base: 'roberta', block: 'roberta.encoder.layer.*', ...inside },
  gpt2: { base: 'transformer', block: 'transformer.h.*', ...beside },
  distilbert: { base: 'distilbert', block: 'distilbert.transformer.layer.*', ...beside },
  vit: { base: 'vit', block: 'vit.encoder.layer.*', ...beside, output_adapter: 'output.output_adapters' },
};

/** The Llama family is `model`, or `transformer` where a class of transformers calls it so; alone it is as under a head. */
const layoutOf = ({ sites, config }: Model): Layout => {
  const base = sites.block.startsWith('transformer.') ? 'transformer' : 'model';
  return layouts[String(config.model_type)] ?? { base, block: `${base}.layers.*`, ...beside };
};

/** The name of a parameter in the file. */
function fileKey(layout: Layout, name: string, key: string): string {
  const [, layer, place, rest] = /^layers\.(\d+)\.(mh_adapter|output_adapter)\.(.*)$/.exec(key) ?? [];
  if (layer !== undefined) {
    return `${layout.block.replace('*', layer)}.${layout[place as 'mh_adapter']}.${name}.${rest}`;
  }
  const dot = key.indexOf('.');
  return `${layout.base}.${key.slice(0, dot)}.${name}${key.slice(dot)}`;
}

/** Each tensor of an adapter by the name that it has in the file. */
export function fileNames(model: Model, name: string, { method, parameters }: SavableAdapter): Map<string, Tensor> {
  const layout = layoutOf(model);
  const named = new Map<string, Tensor>();
  const list = method === 'fusion' ? `adapter_fusion_layer.${name}` : `adapters.${name}`;
  for (const [key, tensor] of parameters) {
    if (method === 'fusion' && key.startsWith('adapters.')) continue;
    const stored = fileKey(layout, key.startsWith('layers.') ? list : name, key);
    named.set(stored, tensor);
    // One module under two names there.
    const [, at, field] = /^(.*)\.adapter_norm_before\.(weight|bias)$/.exec(stored) ?? [];
    if (at) named.set(`${at}.adapter_down.0.${field}`, tensor);
  }
  return named;
}

function openWeights(dir: string, kind: keyof typeof files): WeightSource {
  const [safe, pickle] = files[kind];
  if (existsSync(join(dir, safe))) return openSafetensors(join(dir, safe));
  if (existsSync(join(dir, pickle))) return openTorch(join(dir, pickle));
  throw new GraftError('input', `the adapter has neither ${safe} nor ${pickle}`, { place: dir });
}

/** The weights of one adapter, safetensors or pickle. @throws GraftError 'input' where there are none */
export const openAdapterHub = (dir: string): WeightSource => openWeights(dir, 'adapter');

/** Old names of AdapterHub's configs. */
const oldNames: Readonly<Record<string, string>> = {
  pfeiffer: 'seq_bn',
  houlsby: 'double_seq_bn',
  'pfeiffer+inv': 'seq_bn_inv',
  'houlsby+inv': 'double_seq_bn_inv',
  parallel: 'par_bn',
  scaled_parallel: 'scaled_par_bn',
};

/** Fields as files of older releases have them (adapters/configuration/adapter_config.py, adapters/utils.py ACTIVATION_RENAME). */
function olderFields({ invertible_adapter: inv, ...fields }: Record<string, unknown>, release: unknown) {
  const nested = inv as { block_type: string; reduction_factor: number } | null | undefined;
  if (nested)
    Object.assign(fields, { inv_adapter: nested.block_type, inv_adapter_reduction_factor: nested.reduction_factor });
  if (release === undefined) {
    if (fields.non_linearity === 'gelu') fields.non_linearity = 'gelu_new';
    else if (fields.non_linearity === 'gelu_orig') fields.non_linearity = 'gelu';
  }
  return fields;
}

/** A saved adapter's method, config and base. @throws GraftError 'input' for methods and fields that Graft does not read */
export function readAdapterHubConfig(dir: string): {
  method: 'bottleneck' | 'fusion';
  config: unknown;
  base: string | undefined;
  name: string;
} {
  const fused = existsSync(join(dir, configNames[1]));
  const place = join(dir, configNames[fused ? 1 : 0]);
  const file = readJsonObject(place);
  const { config: raw, model_name: base, name, model_class, adapter_names, graft, version: release } = file;
  const facts = { base: typeof base === 'string' ? base : undefined, name: String(name ?? basename(dir)) };
  if (fused) {
    const names = Array.isArray(adapter_names) ? adapter_names.map(String) : facts.name.split(',');
    const { temperature, key, query, value, value_initialized: _, ...rest } = raw as Record<string, unknown>;
    if (temperature || key === false || query === false) {
      throw new GraftError('input', 'this fusion has a temperature or no key or query, which Graft does not have', {
        place,
      });
    }
    const config = {
      config: value === false ? 'static' : 'dynamic',
      ...rest,
      ...(graft as object),
      adapters: names.map((child) => folderOf(dir, child)),
    };
    return { method: 'fusion', config: parseWith(methods.fusion.config, config, place, 'input'), ...facts };
  }
  if (typeof raw === 'string') {
    const config = { config: oldNames[raw] ?? raw };
    return { method: 'bottleneck', config: parseWith(methods.bottleneck.config, config, place, 'input'), ...facts };
  }
  // Its own classes undo the invertible block before the head; those of transformers that it wraps do not.
  const { architecture = null, ...fields } = olderFields((raw ?? {}) as Record<string, unknown>, release);
  const inverse_before_head = Boolean(fields.inv_adapter) && /(AdapterModel|ModelWithHeads)$/.test(String(model_class));
  if (architecture !== null) {
    throw new GraftError('input', `this is AdapterHub's ${architecture}, which Graft does not put on a model`, {
      place,
      ...(architecture === 'lora' && { hint: 'Try graft convert --to peft' }),
    });
  }
  return {
    method: 'bottleneck',
    config: parseWith(methods.bottleneck.config, { ...fields, inverse_before_head }, place, 'input'),
    ...facts,
  };
}

/** The folder of an adapter that a fusion names: inside its own, as Graft saves it, or beside it. */
function folderOf(dir: string, name: string): string {
  const found = [join(dir, name), join(dirname(resolve(dir)), name)].find(isAdapterHub);
  if (found) return found;
  throw new GraftError('input', `the fusion mixes '${name}', and there is no such adapter in its folder or beside it`, {
    place: dir,
  });
}

/**
 * Fills an adapter, and the head with it, from its directory.
 * @param head undefined: the model keeps its own, whatever the file holds
 * @throws GraftError 'input' for a broken file, 'mismatch' listing every tensor that does not fit
 */
export function fillAdapterHub(
  model: Model,
  dir: string,
  adapter: SavableAdapter,
  head: ReadonlyMap<string, Tensor> | undefined,
): void {
  const { name, config } = readAdapterHubConfig(dir);
  const mixed = adapter.method === 'fusion';
  if (!(mixed && (config as { config: string }).config === 'average')) {
    using source = openWeights(dir, mixed ? 'fusion' : 'adapter');
    const named = fileNames(model, name, adapter);
    const { base } = layoutOf(model);
    // What the base is called in the file: nothing, where it was saved without a head.
    const keys = [...source.entries.keys()];
    const there = [base, 'model', 'transformer'].find((name) => keys.some((key) => key.startsWith(`${name}.`)));
    const moved = (key: string) => (there ? `${there}.` : '') + key.slice(base.length + 1);
    fill(source, new Map([...named].map(([key, t]) => [moved(key), t])), dir);
  }
  if (head) fillHead(model, dir, head);
}

/** JSON as Python writes it: keys sorted, and a scaling with a point, without which AdapterHub does not take it. */
export function pythonJson(value: Record<string, unknown>): string {
  const sorted = (_: string, v: unknown) =>
    typeof v === 'object' && v !== null && !Array.isArray(v)
      ? Object.fromEntries(Object.entries(v).sort(([a], [b]) => (a < b ? -1 : 1)))
      : v;
  return `${JSON.stringify(value, sorted, 2).replace(/("scaling": -?\d+)(,?)$/m, '$1.0$2')}\n`;
}

/** Names that torch's ModuleDict has for itself: AdapterHub cannot load an adapter of such a name. */
const taken =
  /^(apply|bfloat16|buffers|children|clear|compile|cpu|cuda|double|eval|float|forward|half|ipu|items|keys|modules|mtia|parameters|pop|to|train|training|type|update|values|xpu)$/;

/** A name that may stand inside a key. */
const asName = (text: string): string => {
  const name = text.replaceAll(/[^\w-]+/g, '_') || 'adapter';
  return taken.test(name) ? `${name}_adapter` : name;
};

/** What an adapter is called that is saved to `dir`: its folder, or the run's where that says nothing. */
export const nameFor = (dir: string): string => {
  const own = basename(resolve(dir));
  return asName(/^(adapter|best|\d+-.*)$/.test(own) ? basename(dirname(resolve(dir))) : own);
};

const classOf = ({ architecture }: Model, { inverse_before_head }: SavableAdapter['config']): string =>
  inverse_before_head ? `${architecture.replace(/(For|LMHead).*/, '')}AdapterModel` : architecture;

/** Writes one adapter, and the head with it, into the empty directory `work`. */
export function writeAdapterHub(
  model: Model,
  adapter: SavableAdapter & Pick<Adapter, 'nested'>,
  head: ReadonlyMap<string, Tensor>,
  work: string,
  { base }: SaveOptions,
  name: string,
): void {
  const { method, config } = adapter;
  const about = (own: Record<string, unknown>) =>
    pythonJson({
      model_type: model.config.model_type,
      model_name: base,
      model_class: classOf(model, config),
      hidden_size: model.width,
      version,
      ...own,
    });
  if (method === 'fusion') {
    const names = [...adapter.nested!.keys()];
    const fused = names.join(',');
    const { adapters: _, config: kind, weights, train_adapters, ...rest } = config;
    const full = {
      ...rest,
      dropout_prob: rest.dropout_prob ?? null,
      regularization: rest.regularization ?? kind === 'dynamic',
      key: true,
      query: true,
      value: kind !== 'static',
      value_initialized: kind !== 'static',
      temperature: false,
    };
    const graft = { config: kind, weights, train_adapters };
    writeFileSync(join(work, configNames[1]), about({ config: full, name: fused, adapter_names: names, graft }));
    const named = [...fileNames(model, fused, adapter)].map(entryOf);
    if (named.length > 0) writeSafetensors(join(work, files.fusion[0]), named);
    for (const [child, part] of adapter.nested!) {
      mkdirSync(join(work, child));
      writeAdapterHub(model, part, new Map(), join(work, child), { base }, child);
    }
  } else {
    writeFileSync(join(work, configNames[0]), about({ config: adapter.savedConfig!(base), name }));
    writeSafetensors(join(work, files.adapter[0]), [...fileNames(model, name, adapter)].map(entryOf));
  }
  writeHead(model, head, work, about);
}

/** Every tensor that an adapter's directory holds: of a fusion the adapters' too. */
export function storedByAdapterHub(dir: string): WeightEntry[] {
  const { method, config } = readAdapterHubConfig(dir);
  const entries = (kind: keyof typeof files) => {
    if (!files[kind].some((name) => existsSync(join(dir, name)))) return [];
    using source = openWeights(dir, kind);
    return [...source.entries.values()];
  };
  const inner = method === 'fusion' ? (config as { adapters: string[] }).adapters.flatMap(storedByAdapterHub) : [];
  using head = openHead(dir);
  return [...entries('adapter'), ...entries('fusion'), ...(head?.entries.values() ?? []), ...inner];
}

/** One saved adapter, for methods that work with others. */
export function savedAdapterHub(model: Model, dir: string): SavedAdapter {
  const { method, config, name } = readAdapterHubConfig(dir);
  return { name: asName(name), method, config, fill: (adapter) => fillAdapterHub(model, dir, adapter, undefined) };
}
