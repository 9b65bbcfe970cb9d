/** LoRA and IA3 in PEFT's layout (peft/utils/save_and_load.py). */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { readJsonObject, type TensorToWrite, writeSafetensors } from '../../io/index.ts';
import { pythonJson } from '../adapterhub/index.ts';
import { type Matrix, matrix } from '../matrix.ts';
import {
  type AdapterUpdates,
  half,
  isHead,
  kept,
  notConvertible,
  numberOf,
  openOne,
  type Pairs,
  tensorOf,
  type Update,
  type UpdateFormat,
  whole,
} from '../updates.ts';
import { readPeftConfig, requireOwnBase } from './files.ts';

export const peftUpdates: UpdateFormat = { read: readPeft, write: writePeft };

function readPeft(dir: string): AdapterUpdates {
  const config = readJsonObject(join(dir, 'adapter_config.json'));
  const { peft_type: type, base_model_name_or_path: from } = config;
  const base = typeof from === 'string' ? from : undefined;
  if (type !== 'LORA' && type !== 'IA3') {
    const prefix = type === 'PREFIX_TUNING';
    throw notConvertible(
      prefix
        ? 'PEFT counts the positions of the text from behind a prefix and AdapterHub from 0: the same keys act differently'
        : `adapters of the type ${type} have no other format`,
      dir,
    );
  }
  requireOwnBase(readPeftConfig(dir).config, dir);
  for (const [field, word] of [
    ['use_dora', 'DoRA'],
    ['lora_bias', 'biases of updates'],
    ['trainable_token_indices', 'single token rows'],
  ] as const) {
    if (config[field]) throw notConvertible(`it uses ${word}, which no other format has`, dir);
  }
  using source = openOne(dir, 'adapter_model.safetensors', 'adapter_model.bin');
  const pairs: Pairs = new Map();
  const factors = new Map<string, Matrix>();
  const head: TensorToWrite[] = [];
  for (const name of source.entries.keys()) {
    const key = name.replace(/^base_model\.model\./, '');
    if (isHead(key) && !key.includes('.lora_')) {
      head.push(kept(source, name, key));
      continue;
    }
    const [, path, what] = /^base_model\.model\.(.+)\.(lora_A\.weight|lora_B\.weight|ia3_l)$/.exec(name) ?? [];
    if (!path) throw notConvertible(`${name} has no place in another format`, dir);
    if (what === 'ia3_l') factors.set(path, matrix(source, name));
    else half(pairs, path)[what === 'lora_A.weight' ? 'a' : 'b'] = matrix(source, name);
  }
  if (type === 'IA3') {
    const inside = [...factors].find(([, { columns }]) => columns !== 1);
    if (inside)
      throw notConvertible(`${inside[0]} scales what goes into the layer, and other formats only what comes out`, dir);
    return { kind: 'ia3', base, head, dropout: 0, layers: factors };
  }
  const pattern = (field: string, path: string, otherwise: number) => {
    const found = Object.entries((config[field] ?? {}) as Record<string, number>).find(([key]) =>
      new RegExp(`^(?:.*\\.)?(?:${key})$`, 's').test(path),
    );
    return found?.[1] ?? otherwise;
  };
  const scaling = (path: string, rank: number) =>
    pattern('alpha_pattern', path, numberOf(config.lora_alpha, 8)) / (config.use_rslora ? Math.sqrt(rank) : rank);
  return { kind: 'lora', base, head, dropout: numberOf(config.lora_dropout, 0), layers: whole(pairs, scaling, dir) };
}

function writePeft(said: AdapterUpdates, work: string): void {
  const { base, dropout, layers, kind, head } = said;
  const heads = head.map((part) => ({ ...part, name: `base_model.model.${part.name}` }));
  const conv = [...layers.keys()].some((path) => /\.(c_attn|c_fc|c_proj)$/.test(path));
  const common = {
    base_model_name_or_path: base ?? null,
    task_type: null,
    inference_mode: true,
    target_modules: [...layers.keys()],
    fan_in_fan_out: conv,
    modules_to_save: head.length > 0 ? [...new Set(head.map(({ name }) => name.split('.')[0]!))] : null,
  };
  if (kind === 'ia3') {
    writeFileSync(
      join(work, 'adapter_config.json'),
      pythonJson({ ...common, peft_type: 'IA3', feedforward_modules: [] }),
    );
    const tensors = [...said.layers].map(([path, l]) => tensorOf(`base_model.model.${path}.ia3_l`, l));
    writeSafetensors(join(work, 'adapter_model.safetensors'), [...tensors, ...heads], { format: 'pt' });
    return;
  }
  const [first] = said.layers.values() as unknown as [Update];
  const literally = (path: string) => path.replaceAll('.', '\\.');
  const others = [...said.layers].filter(([, { a }]) => a.rows !== first.a.rows);
  const alpha = first.scaling * first.a.rows;
  const scaled = [...said.layers].filter(([, { a, scaling }]) => scaling * a.rows !== alpha);
  const config = {
    ...common,
    peft_type: 'LORA',
    r: first.a.rows,
    lora_alpha: alpha,
    lora_dropout: dropout,
    bias: 'none',
    rank_pattern: Object.fromEntries(others.map(([path, { a }]) => [literally(path), a.rows])),
    alpha_pattern: Object.fromEntries(scaled.map(([path, { a, scaling }]) => [literally(path), scaling * a.rows])),
  };
  writeFileSync(join(work, 'adapter_config.json'), pythonJson(config));
  const tensors = [...said.layers].flatMap(([path, { a, b }]) => [
    tensorOf(`base_model.model.${path}.lora_A.weight`, a),
    tensorOf(`base_model.model.${path}.lora_B.weight`, b),
  ]);
  writeSafetensors(join(work, 'adapter_model.safetensors'), [...tensors, ...heads], { format: 'pt' });
}
