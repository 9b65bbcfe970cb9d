/**
 * Adapters on disk in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`
 * (peft/peft_model.py save_pretrained, peft/utils/save_and_load.py).
 */

import { existsSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import type { Steps } from '../../base/index.ts';
import { openSafetensors, type TensorToWrite, writeSafetensors } from '../../io/index.ts';
import { type Method, methods } from '../../methods/index.ts';
import { type Embedding, type Linear, type Model, moduleAt, unwrapped } from '../../nn/index.ts';
import { noGrad, scope, type Tensor } from '../../tensor/index.ts';
import { headNames } from '../family-names.ts';
import type { HeadTensors, Layout, LayoutAdapter } from '../layout.ts';
import { fillTensors, tensorToWrite } from '../tensor-files.ts';
import { configName, isPeft, openPeftWeights, readPeftConfig, taskNameOf, taskTypes } from './read-config.ts';
import { keyPrefix, tablesIn } from './tables.ts';

/** Parameters of methods for which PEFT saves only a tensor computed from them: training resumes from this file. */
const trainingFile = 'training.safetensors';

const headKey = new RegExp(`^base_model\\.(model\\.)?(${[...headNames].join('|')})\\.`);

/** Under `bias: all` PEFT writes the biases of both copies of a module that it saves whole, in addition to the one in use. */
const unusedBias = /\.(original_module|modules_to_save)\.(.*\.)?bias$/;

/** The copy of an embedding's or a head's table that PEFT stores with an update of it. */
const tableSuffix = '.base_layer.weight';

export const peftLayout: Layout = {
  holds: isPeft,
  supports: ({ peftType }) => peftType !== undefined,
  readConfig: readPeftConfig,
  headOptions(dir) {
    readPeftConfig(dir); // refuses what Graft does not load
    const task = taskNameOf(dir);
    const size = headSizeOf(dir);
    const vocabRows = vocabRowsOf(dir);
    return {
      ...(task && { task }),
      ...(vocabRows !== undefined && { vocabRows }),
      ...(size !== undefined && { labels: Array.from({ length: size }, (_, i) => `LABEL_${i}`) }),
    };
  },
  hasUnknownHead: () => false,
  headModules: () => [],
  load: (_, dir, adapter, head) => load(dir, adapter, head),
  save,
  storedTensors(dir) {
    using source = openPeftWeights(dir);
    return [...source.entries.values()];
  },
};

/** Tokens that the tables of the file have rows for; undefined where it holds none. */
function vocabRowsOf(dir: string): number | undefined {
  using source = openPeftWeights(dir);
  return tablesIn(source)[0]?.rows;
}

/** Number of labels of the head that the file holds, or undefined. */
function headSizeOf(dir: string): number | undefined {
  using source = openPeftWeights(dir);
  const sizes = [...source.entries.values()]
    .filter(({ name }) => headKey.test(name) && name.endsWith('.weight'))
    .map(({ shape }) => shape[0]!);
  return sizes.at(-1);
}

/** Each parameter by its name in the file. */
function byFileName(adapter: LayoutAdapter, head: HeadTensors = new Map()): Map<string, Tensor> {
  const tensors = new Map<string, Tensor>();
  for (const [key, tensor] of adapter.parameters) tensors.set(adapter.fileKey?.(key) ?? keyPrefix + key, tensor);
  // PEFT's prompt methods hold the model itself and not a wrapper of it: one `model.` less.
  const headPrefix = adapter.fileKey || adapter.derived ? 'base_model.' : keyPrefix;
  for (const [key, tensor] of head) tensors.set(headPrefix + key, tensor);
  return tensors;
}

function* load(dir: string, adapter: LayoutAdapter, head: HeadTensors | undefined): Steps<void> {
  const { derived } = adapter;
  using source = openPeftWeights(dir);
  const fileOnly = new Set(fileOnlyKeys(adapter).map((key) => keyPrefix + key));
  const ignored = (name: string) =>
    fileOnly.has(name) || name.endsWith(tableSuffix) || unusedBias.test(name) || (!head && headKey.test(name));
  const shown = (name: string) => (name.startsWith(keyPrefix) ? name.slice(keyPrefix.length) : name);
  const parametersFile = join(dir, trainingFile);
  if (derived && existsSync(parametersFile)) {
    using parameters = openSafetensors(parametersFile);
    yield* fillTensors(parameters, adapter.parameters, dir);
    const headOnly = byFileName({ ...adapter, parameters: new Map() }, head);
    yield* fillTensors(source, headOnly, dir, (name) => name === derived.name || ignored(name), shown);
    return;
  }
  derived?.adopt();
  yield* fillTensors(source, byFileName(adapter, head), dir, ignored, shown);
}

/** Keys that the file has and the parameters have not: the second key of a shared table. */
function fileOnlyKeys(adapter: LayoutAdapter): string[] {
  using _ = scope();
  return [...(adapter.savedTensors?.().keys() ?? [])].filter((key) => !adapter.parameters.has(key));
}

function save(
  model: Model,
  adapter: LayoutAdapter,
  head: HeadTensors,
  work: string,
  { base, present }: Parameters<Layout['save']>[4],
): void {
  const { peftType } = methods[adapter.method as keyof typeof methods] as Method<unknown>;
  const config = {
    ...adapter.config,
    peft_type: peftType,
    task_type: taskTypes[model.task.name] ?? null,
    base_model_name_or_path: base,
    inference_mode: true,
    revision: null,
    auto_mapping: null,
    ...adapter.savedConfig?.(base),
  };
  const sorted = Object.fromEntries(Object.entries(config).sort(([a], [b]) => (a < b ? -1 : 1)));
  writeFileSync(join(work, configName), `${JSON.stringify(sorted, null, 2)}\n`);
  using _ = scope();
  writeSafetensors(join(work, 'adapter_model.safetensors'), tensorsOf(model, adapter, head, present), { format: 'pt' });
  if (adapter.derived) writeSafetensors(join(work, trainingFile), [...adapter.parameters].map(tensorToWrite));
  writeFileSync(join(work, 'README.md'), modelCard(adapter, base));
}

/** Whether PEFT saves the tables of embeddings and head with their updates: where the targets name one of them. */
function savesTables({
  target_modules: targets,
  trainable_token_indices: rows,
}: Readonly<Record<string, unknown>>): boolean {
  if (rows) return false;
  return Array.isArray(targets) ? targets.includes('embed_tokens') || targets.includes('lm_head') : true;
}

function* tensorsOf(
  model: Model,
  adapter: LayoutAdapter,
  head: HeadTensors,
  present: (tensor: Tensor) => void = () => {},
): Generator<TensorToWrite> {
  const { derived } = adapter;
  const withTables = savesTables({ ...adapter.config, ...adapter.savedConfig?.() });
  if (derived) yield tensorToWrite([derived.name, noGrad(() => derived.value())]);
  const parameters = derived ? new Map() : (noGrad(() => adapter.savedTensors?.()) ?? adapter.parameters);
  for (const [name, tensor] of byFileName({ ...adapter, parameters }, head)) {
    yield tensorToWrite([name, tensor]);
    // PEFT saves the table of a targeted embedding or head too (save_embedding_layers="auto").
    const path = /^base_model\.model\.(.*)\.lora_(embedding_A|A\.weight)$/.exec(name)?.[1];
    if (path && withTables && (path === model.sites.embeddings || path === model.sites.head)) {
      const table = unwrapped(moduleAt(model.root, path)) as Embedding | Linear;
      const { weight, format } = table;
      const width = 'inFeatures' in table ? table.inFeatures : table.width;
      // Read when it is written: until then its numbers may be with other processes.
      const bytes = () => {
        present(weight);
        return table.denseWeight().bytes();
      };
      const dtype = format < 0 ? weight.dtype : 'float32';
      yield { name: keyPrefix + path + tableSuffix, dtype, shape: [weight.size(0), width], bytes };
    }
  }
}

const modelCard = (adapter: LayoutAdapter, base: string) => `---
base_model: ${base}
library_name: peft
---
# ${adapter.method} adapter for ${basename(base)}

Trained with Graft. Load it with Graft (\`graft generate --adapter\`) or with PEFT (\`PeftModel.from_pretrained\`).
`;
