/**
 * Adapters on disk in AdapterHub's layout: `adapter_config.json` and `adapter.safetensors` (or a pickle) for one adapter,
 * `adapter_fusion_config.json` and `model_adapter_fusion.safetensors` for a fusion, `head_config.json` and
 * `model_head.safetensors` for a head (adapters/loading.py).
 */

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Steps } from '../../base/index.ts';
import { type WeightEntry, type WeightSource, writeSafetensors } from '../../io/index.ts';
import type { Model } from '../../nn/index.ts';
import type { HeadTensors, Layout, LayoutAdapter } from '../layout.ts';
import { pythonJson } from '../python-json.ts';
import { fillTensors, findWeights, openWeightsOf, tensorToWrite } from '../tensor-files.ts';
import { fillHead, hasHead, headModules, openHead, taskOfHead, writeHead } from './head-files.ts';
import { configNames, isAdapterHub, readAdapterHubConfig, version } from './read-config.ts';
import { byFileKey, byStoredKey } from './tensor-keys.ts';

/** Files of weights, the one that Graft writes first. */
const weightFiles = {
  adapter: ['adapter.safetensors', 'pytorch_adapter.bin'],
  fusion: ['model_adapter_fusion.safetensors', 'pytorch_model_adapter_fusion.bin'],
} as const;

export const adapterHubLayout: Layout = {
  holds: isAdapterHub,
  supports: ({ adapterHub }) => adapterHub === true,
  readConfig: readAdapterHubConfig,
  headOptions: taskOfHead,
  hasUnknownHead: (dir) => hasHead(dir) && taskOfHead(dir).task === undefined,
  headModules,
  load,
  save,
  storedTensors,
};

/** The weights of one adapter. @throws GraftError 'input' where the directory has none */
export const openAdapterHubWeights = (dir: string): WeightSource => openWeightsOf(dir, weightFiles.adapter);

function* load(model: Model, dir: string, adapter: LayoutAdapter, head: HeadTensors | undefined): Steps<void> {
  const { name, config } = readAdapterHubConfig(dir);
  const isFusion = adapter.method === 'fusion';
  if (!(isFusion && (config as { config: string }).config === 'average')) {
    using source = openWeightsOf(dir, weightFiles[isFusion ? 'fusion' : 'adapter']);
    yield* fillTensors(source, byStoredKey(model, name, adapter, source.entries.keys()), dir);
  }
  if (head) yield* fillHead(model, dir, head);
}

/** The class of the model that the file names: AdapterHub's own where the invertible block is undone before the head. */
const modelClass = ({ architecture }: Model, { inverse_before_head }: LayoutAdapter['config']): string =>
  inverse_before_head ? `${architecture.replace(/(For|LMHead).*/, '')}AdapterModel` : architecture;

function save(
  model: Model,
  adapter: LayoutAdapter,
  head: HeadTensors,
  work: string,
  { base, name }: { readonly base: string; readonly name: string },
): void {
  const writeConfig = (file: string, fields: Record<string, unknown>) => {
    const config = {
      model_type: model.config.model_type,
      model_name: base,
      model_class: modelClass(model, adapter.config),
      hidden_size: model.width,
      version,
      ...fields,
    };
    writeFileSync(join(work, file), pythonJson(config));
  };
  if (adapter.method === 'fusion') {
    const names = [...adapter.nested!.keys()];
    const fusionName = names.join(',');
    writeConfig(configNames.fusion, { ...fusionFields(adapter), name: fusionName, adapter_names: names });
    const tensors = [...byFileKey(model, fusionName, adapter)].map(tensorToWrite);
    if (tensors.length > 0) writeSafetensors(join(work, weightFiles.fusion[0]), tensors);
    for (const [child, part] of adapter.nested!) {
      mkdirSync(join(work, child));
      save(model, part, new Map(), join(work, child), { base, name: child });
    }
  } else {
    writeConfig(configNames.adapter, { config: adapter.savedConfig!(base), name });
    writeSafetensors(join(work, weightFiles.adapter[0]), [...byFileKey(model, name, adapter)].map(tensorToWrite));
  }
  writeHead(model, head, work, writeConfig);
}

/** AdapterHub's config of a fusion, and under `graft` the fields that AdapterHub lacks. */
function fusionFields({ config }: LayoutAdapter): Record<string, unknown> {
  const { adapters: _, config: kind, weights, train_adapters, ...rest } = config;
  const fields = {
    ...rest,
    dropout_prob: rest.dropout_prob ?? null,
    regularization: rest.regularization ?? kind === 'dynamic',
    key: true,
    query: true,
    value: kind !== 'static',
    value_initialized: kind !== 'static',
    temperature: false,
  };
  return { config: fields, graft: { config: kind, weights, train_adapters } };
}

/** Of a fusion the tensors of its adapters too. */
function storedTensors(dir: string): WeightEntry[] {
  const { method, config } = readAdapterHubConfig(dir);
  const entriesOf = (names: readonly string[]) => {
    using source = findWeights(dir, names);
    return [...(source?.entries.values() ?? [])];
  };
  const fused = method === 'fusion' ? (config as { adapters: string[] }).adapters.flatMap(storedTensors) : [];
  using head = openHead(dir);
  return [
    ...entriesOf(weightFiles.adapter),
    ...entriesOf(weightFiles.fusion),
    ...(head?.entries.values() ?? []),
    ...fused,
  ];
}
