/** LoRA and IA3 in PEFT's layout (peft/utils/save_and_load.py). */
import { join } from 'node:path';
import { readJsonObject, type TensorToWrite } from '../../io/index.ts';
import { byPattern } from '../../methods/index.ts';
import { isHeadKey, isTransposed } from '../family-names.ts';
import {
  type AdapterUpdates,
  type LowRankUpdate,
  lowRankUpdates,
  matrixToWrite,
  notConvertible,
  numberOr,
  prefixNotConvertible,
  readUpdates,
  storedToWrite,
  stringIn,
  type UpdateFormat,
  type UpdatePart,
  writeUpdateFiles,
} from '../update-format.ts';
import { configName, isPeft, openPeftWeights, readPeftConfig, requireUnchangedBase } from './read-config.ts';
import { keyPrefix } from './tables.ts';

export const peftUpdates: UpdateFormat = { holds: isPeft, read, write };

const parts: Readonly<Record<string, UpdatePart['part']>> = {
  'lora_A.weight': 'a',
  'lora_B.weight': 'b',
  ia3_l: 'factors',
};

function updatePartOf(name: string): UpdatePart | undefined {
  const [, path, end] = /^base_model\.model\.(.+)\.(lora_A\.weight|lora_B\.weight|ia3_l)$/.exec(name) ?? [];
  return path && end ? { path, part: parts[end]! } : undefined;
}

/** The key of a tensor of the head in its model, or undefined. */
function headKeyOf(name: string): string | undefined {
  const key = name.startsWith(keyPrefix) ? name.slice(keyPrefix.length) : name;
  return isHeadKey(key) && !key.includes('.lora_') ? key : undefined;
}

/** Fields of LoRA's config that no other format supports, and what they turn on. */
const unsupportedFields = [
  ['use_dora', 'DoRA'],
  ['lora_bias', 'biases of updates'],
  ['trainable_token_indices', 'single token rows'],
] as const;

function read(dir: string): AdapterUpdates {
  const config = readJsonObject(join(dir, configName));
  const { peft_type: type } = config;
  if (type === 'PREFIX_TUNING') throw prefixNotConvertible(dir);
  if (type !== 'LORA' && type !== 'IA3') {
    throw notConvertible(`no other format supports adapters of the type ${type}`, dir);
  }
  const parsed = readPeftConfig(dir).config as { modules_to_save?: readonly string[] | null };
  requireUnchangedBase(parsed, dir);
  const whole = parsed.modules_to_save ?? [];
  if (whole.length > 0) {
    const names = `modules_to_save: ${whole.join(', ')}`;
    throw notConvertible(`this adapter holds whole modules (${names}), which no other format supports`, dir);
  }
  for (const [field, meaning] of unsupportedFields) {
    if (config[field]) throw notConvertible(`this adapter uses ${meaning}, which no other format supports`, dir);
  }
  using source = openPeftWeights(dir);
  const head: TensorToWrite[] = [];
  const names = [...source.entries.keys()].filter((name) => {
    const key = headKeyOf(name);
    if (key) head.push(storedToWrite(source, name, key));
    return !key;
  });
  const { pairs, factors } = readUpdates(source, names, dir, updatePartOf);
  const base = stringIn(config.base_model_name_or_path);
  if (type === 'IA3') {
    const ofInput = [...factors].find(([, { columns }]) => columns !== 1);
    if (ofInput)
      throw notConvertible(`IA3 scales the input of ${ofInput[0]}, and other formats scale outputs only`, dir);
    return { kind: 'ia3', base, head, dropout: 0, layers: factors };
  }
  const alphas = (config.alpha_pattern ?? {}) as Record<string, number>;
  const scaling = (path: string, rank: number) =>
    byPattern(alphas, path, numberOr(config.lora_alpha, 8)) / (config.use_rslora ? Math.sqrt(rank) : rank);
  const layers = lowRankUpdates(pairs, scaling, dir);
  return { kind: 'lora', base, head, dropout: numberOr(config.lora_dropout, 0), layers };
}

function write(updates: AdapterUpdates, work: string): void {
  const { base, dropout, head } = updates;
  const paths = [...updates.layers.keys()];
  const ofHead = head.map((tensor) => ({ ...tensor, name: keyPrefix + tensor.name }));
  const common = {
    base_model_name_or_path: base ?? null,
    task_type: null,
    inference_mode: true,
    target_modules: paths,
    fan_in_fan_out: paths.some(isTransposed),
    modules_to_save: head.length > 0 ? [...new Set(head.map(({ name }) => name.split('.')[0]!))] : null,
  };
  const [fields, tensors] =
    updates.kind === 'ia3'
      ? [
          { peft_type: 'IA3', feedforward_modules: [] },
          [...updates.layers].map(([path, factors]) => matrixToWrite(`${keyPrefix}${path}.ia3_l`, factors)),
        ]
      : [
          { ...loraFields(updates.layers), lora_dropout: dropout },
          [...updates.layers].flatMap(([path, { a, b }]) => [
            matrixToWrite(`${keyPrefix}${path}.lora_A.weight`, a),
            matrixToWrite(`${keyPrefix}${path}.lora_B.weight`, b),
          ]),
        ];
  writeUpdateFiles(work, { ...common, ...fields }, 'adapter_model.safetensors', [...tensors, ...ofHead], {
    format: 'pt',
  });
}

/** Rank and alpha of the first layer, and patterns for the layers that have others. */
function loraFields(layers: ReadonlyMap<string, LowRankUpdate>): Record<string, unknown> {
  const [first] = layers.values() as unknown as [LowRankUpdate];
  const rank = first.a.rows;
  const alpha = first.scaling * rank;
  const pattern = (path: string) => path.replaceAll('.', '\\.');
  const ofOtherRank = [...layers].filter(([, { a }]) => a.rows !== rank);
  const ofOtherAlpha = [...layers].filter(([, { a, scaling }]) => scaling * a.rows !== alpha);
  return {
    peft_type: 'LORA',
    r: rank,
    lora_alpha: alpha,
    bias: 'none',
    rank_pattern: Object.fromEntries(ofOtherRank.map(([path, { a }]) => [pattern(path), a.rows])),
    alpha_pattern: Object.fromEntries(ofOtherAlpha.map(([path, { a, scaling }]) => [pattern(path), scaling * a.rows])),
  };
}
