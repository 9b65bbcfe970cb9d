/** LoRA and IA3 in AdapterHub's layout (adapters/methods/lora.py). */
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { readJsonObject, type TensorToWrite, writeSafetensors } from '../../io/index.ts';
import { type AdapterHubNames, families } from '../../models/index.ts';
import type { TaskName } from '../../nn/index.ts';
import { familyOfType } from '../family-names.ts';
import { type Matrix, stacked } from '../matrix.ts';
import { pythonJson } from '../python-json.ts';
import { openWeightsOf } from '../tensor-files.ts';
import {
  type AdapterUpdates,
  lowRankUpdates,
  matrixToWrite,
  notConvertible,
  numberOr,
  prefixNotConvertible,
  readUpdates,
  storedToWrite,
  stringIn,
  type UpdateFormat,
  type WriteOptions,
  withOneRank,
  writeUpdateFiles,
} from '../update-format.ts';
import { fixedHeadFields, hasHead, headConfigName, headWeightFiles } from './head-files.ts';
import { openAdapterHubWeights } from './layout.ts';
import { configNames, isAdapterHub, version } from './read-config.ts';

/** Releases that trained LoRA and IA3 as if alpha were r, whatever the file says (adapters/loading.py `_fix_backward_compat`). */
const ignoredAlpha = /^adapters\.(0\.|1\.0\.|1\.1\.0\.?(dev|a|b|rc))/;

export const adapterHubUpdates: UpdateFormat = { holds: isAdapterHub, read, write };

function read(dir: string): AdapterUpdates {
  if (existsSync(join(dir, configNames.fusion))) {
    throw notConvertible('no other format supports a fusion of bottleneck adapters', dir);
  }
  const file = readJsonObject(join(dir, configNames.adapter));
  const config = (file.config ?? {}) as Record<string, unknown>;
  requireConvertible(config, String(file.model_type), dir);
  using source = openAdapterHubWeights(dir);
  const r = numberOr(config.r, 8);
  const alpha = ignoredAlpha.test(String(file.version)) ? r : numberOr(config.alpha, 8);
  const isIa3 = config.composition_mode === 'scale';
  const { pairs, factors } = readUpdates(source, source.entries.keys(), dir, (key) => {
    const [path, matrix] = key.split(`.loras.${file.name}.lora_`) as [string, string | undefined];
    if (matrix !== 'A' && matrix !== 'B') return undefined;
    return { path, part: isIa3 ? 'factors' : matrix === 'A' ? 'a' : 'b' };
  });
  const shared = { base: stringIn(file.model_name), dropout: numberOr(config.dropout, 0), head: readHead(dir) };
  if (isIa3) {
    const scaled = ({ values, ...shape }: Matrix) => ({ ...shape, values: values.map((value) => value * alpha) });
    return { kind: 'ia3', ...shared, layers: new Map([...factors].map(([path, matrix]) => [path, scaled(matrix)])) };
  }
  const ofLayers = [...pairs].map(([path, pair]) => {
    const { a, b } = pair;
    return [path, isFused(path) && a && b ? fusedUpdate(a, b, r, config.attn_matrices) : pair] as const;
  });
  return { kind: 'lora', ...shared, layers: lowRankUpdates(new Map(ofLayers), () => alpha / r, dir) };
}

/** @throws GraftError 'usage' for methods and fields that no other format supports */
function requireConvertible(config: Readonly<Record<string, unknown>>, modelType: string, dir: string): void {
  if (config.architecture === 'prefix_tuning') throw prefixNotConvertible(dir);
  if (config.architecture !== 'lora') {
    throw notConvertible(`no other format supports AdapterHub's ${config.architecture ?? 'bottleneck adapter'}`, dir);
  }
  for (const field of ['use_gating', 'use_dora', 'vera_d', 'vera_b']) {
    if (config[field]) throw notConvertible(`this adapter uses ${field}, which no other format supports`, dir);
  }
  const names = familyOfType(modelType)?.adapterHub;
  if (names && !names.updates)
    throw notConvertible("AdapterHub's names for the layers of this model family differ from PEFT's", dir);
}

/** The head saved with an adapter, under the keys of its model. */
function readHead(dir: string): TensorToWrite[] {
  if (!hasHead(dir)) return [];
  const { config, model_class } = readJsonObject(join(dir, headConfigName));
  // A language model's own head, which AdapterHub does not train.
  if (/(ForCausalLM|LMHeadModel|ForMaskedLM)$/.test(String(model_class))) return [];
  if (config)
    throw notConvertible('the saved head is a flexible head of AdapterHub, which no other format supports', dir);
  using source = openWeightsOf(dir, headWeightFiles);
  return [...source.entries.keys()].map((key) => storedToWrite(source, key, key));
}

/**
 * The update of a layer that holds query, key and value (GPT-2), of which AdapterHub stores one update each, stacked.
 * @param a [r·n, in], with n the number of those that are updated
 * @param b [n·out/3, r]
 * @returns A as it is, B [out, r·n] with zeros where a part of the output has nothing to do with a part of A
 */
function fusedUpdate(a: Matrix, b: Matrix, r: number, attnMatrices: unknown): { a: Matrix; b: Matrix } {
  const updated = ['q', 'k', 'v'].filter((letter) => (attnMatrices as string[]).includes(letter));
  const width = b.rows / updated.length;
  const values = new Float32Array(3 * width * a.rows);
  updated.forEach((letter, i) => {
    for (let row = 0; row < width; row++) {
      const at = ('qkv'.indexOf(letter) * width + row) * a.rows + i * r;
      values.set(b.values.subarray((i * width + row) * r, (i * width + row + 1) * r), at);
    }
  });
  return { a, b: { rows: 3 * width, columns: a.rows, values } };
}

/** Names of a family whose LoRA and IA3 AdapterHub has. */
interface UpdateNames extends NonNullable<AdapterHubNames['updates']> {
  readonly type: string;
  /** Matches the path of a layer: the number of its block, and its path in the block. */
  readonly layerPath: RegExp;
}

const updatable = families.flatMap(({ types, prefixes, adapterHub }): UpdateNames[] => {
  if (!adapterHub?.updates) return [];
  const block = RegExp.escape(`${prefixes[0]}.${adapterHub.block}`).replace('\\*', '(\\d+)');
  return [{ type: types[0]!, layerPath: new RegExp(`^${block}\\.(.+)$`), ...adapterHub.updates }];
});

/** Whether the layer at `path` is query, key and value in one. */
const isFused = (path: string): boolean =>
  updatable.some(({ attention }) =>
    Object.entries(attention).some(([layer, letters]) => letters.length > 1 && path.endsWith(`.${layer}`)),
  );

/** The updated layers as AdapterHub's config names them. */
interface UpdatedPlaces {
  /** `q`, `k`, `v`, `intermediate_lora` and `output_lora`, as far as they are updated. */
  readonly flags: ReadonlySet<string>;
  /** Numbers of the blocks without updates. */
  readonly leaveOut: readonly number[];
}

/** @throws GraftError 'usage' for layers that AdapterHub cannot update */
function updatedPlaces(
  paths: readonly string[],
  { attention, mlp, layerPath }: UpdateNames,
  source: string,
): UpdatedPlaces {
  const byBlock = new Map<number, string[]>();
  const flags = new Set<string>();
  for (const path of paths) {
    const [, block, layer] = layerPath.exec(path)!;
    const letters = attention[layer!];
    const flag = mlp[layer!];
    if (!letters && !flag) throw notConvertible(`AdapterHub cannot update the layer ${path}`, source);
    for (const letter of letters ?? []) flags.add(letter);
    if (flag) flags.add(flag);
    byBlock.set(Number(block), [...(byBlock.get(Number(block)) ?? []), layer!].sort());
  }
  const [first] = byBlock.values() as unknown as [string[]];
  const different = [...byBlock].find(([, layers]) => layers.join() !== first.join());
  if (different) {
    throw notConvertible(
      `AdapterHub updates the same layers in every block, and block ${different[0]} differs`,
      source,
    );
  }
  const count = Math.max(...byBlock.keys()) + 1;
  return { flags, leaveOut: Array.from({ length: count }, (_, i) => i).filter((i) => !byBlock.has(i)) };
}

function write(updates: AdapterUpdates, work: string, { source, name, head }: WriteOptions): void {
  const paths = [...updates.layers.keys()];
  const family = updatable.find(({ layerPath }) => paths.every((path) => layerPath.test(path)));
  if (!family) throw notConvertible(`AdapterHub cannot update the layer ${paths[0]}`, source);
  const places = updatedPlaces(paths, family, source);
  if (updates.kind === 'ia3' && Object.values(family.attention).some((letters) => letters.length > 1))
    throw notConvertible('AdapterHub does not support IA3 on layers that hold query, key and value together', source);
  const { tensors, rank, scaling } = tensorsOf(updates, name);
  const baseConfig = readBaseConfig(updates.base);
  const type = String(baseConfig.model_type ?? family.type);
  const model = {
    model_type: type,
    model_name: updates.base ?? null,
    // AdapterHub loads a head into a model of its class only.
    model_class:
      modelClass(family, type, head.task) ??
      (baseConfig.architectures as string[] | undefined)?.[0] ??
      family.defaultClass,
    hidden_size: baseConfig.hidden_size ?? baseConfig.n_embd ?? null,
    version,
  };
  const config = loraConfig(updates, places, rank, scaling);
  writeUpdateFiles(work, { ...model, name, config }, 'adapter.safetensors', tensors);
  if (updates.head.length === 0) return;
  writeFileSync(join(work, headConfigName), pythonJson({ ...model, ...fixedHeadFields(head.labels!) }));
  writeSafetensors(join(work, headWeightFiles[0]), updates.head);
}

/** The tensors of the file, and the rank and scaling that all of them have. */
function tensorsOf(updates: AdapterUpdates, name: string): { tensors: TensorToWrite[]; rank: number; scaling: number } {
  const key = (path: string, matrix: 'A' | 'B') => `${path}.loras.${name}.lora_${matrix}`;
  if (updates.kind === 'ia3') {
    const tensors = [...updates.layers].map(([path, factors]) => matrixToWrite(key(path, 'B'), factors));
    return { tensors, rank: 1, scaling: 1 };
  }
  const { rank, scaling, layers } = withOneRank(updates.layers);
  const tensors = [...layers].flatMap(([path, { a, b }]) => [
    // AdapterHub has one A for each of query, key and value; in a fused layer here they share one.
    matrixToWrite(key(path, 'A'), isFused(path) ? stacked([a, a, a]) : a),
    matrixToWrite(key(path, 'B'), b),
  ]);
  return { tensors, rank, scaling };
}

/** AdapterHub's LoRAConfig, which is that of IA3 too. */
function loraConfig(
  { kind, dropout }: AdapterUpdates,
  { flags, leaveOut }: UpdatedPlaces,
  rank: number,
  scaling: number,
) {
  const attention = ['q', 'k', 'v'].filter((letter) => flags.has(letter));
  return {
    architecture: 'lora',
    r: rank,
    alpha: scaling * rank,
    attn_matrices: attention,
    composition_mode: kind === 'ia3' ? 'scale' : 'add',
    dropout,
    dtype: null,
    init_weights: kind,
    init_weights_seed: null,
    selfattn_lora: attention.length > 0,
    intermediate_lora: flags.has('intermediate_lora'),
    output_lora: flags.has('output_lora'),
    leave_out: leaveOut,
    use_dora: false,
    use_gating: false,
    vera_b: null,
    vera_d: null,
  };
}

const suffixes: Partial<Record<TaskName, string>> = {
  'sequence-classification': 'ForSequenceClassification',
  'token-classification': 'ForTokenClassification',
  'question-answering': 'ForQuestionAnswering',
};

/** The class of transformers that has a head for the task. */
function modelClass({ stems }: UpdateNames, type: string, task: TaskName | undefined): string | undefined {
  const [stem, suffix] = [stems[type], task && suffixes[task]];
  return stem && suffix && stem + suffix;
}

/** The base's config.json, where the base is a directory on this machine; else empty. */
function readBaseConfig(base: string | undefined): Record<string, unknown> {
  const file = base && join(base, 'config.json');
  return file && existsSync(file) ? readJsonObject(file) : {};
}
