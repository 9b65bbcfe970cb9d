/** LoRA in mlx-lm's layout (mlx_lm/tuner/utils.py load_adapters): y + scale·(x·a)·b with a [in, r], b [r, out]. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { readJsonObject, writeSafetensors } from '../../io/index.ts';
import { pythonJson } from '../adapterhub/index.ts';
import { matrix, transposed } from '../matrix.ts';
import {
  type AdapterUpdates,
  alike,
  half,
  notConvertible,
  numberOf,
  openOne,
  type Pairs,
  tensorOf,
  type UpdateFormat,
  whole,
} from '../updates.ts';

export const mlxUpdates: UpdateFormat = { read: readMlx, write: writeMlx };

function readMlx(dir: string): AdapterUpdates {
  const config = readJsonObject(join(dir, 'adapter_config.json'));
  const kind = config.fine_tune_type ?? 'lora';
  if (kind !== 'lora') throw notConvertible(`mlx-lm's ${kind} has no exact counterpart`, dir);
  const { scale, dropout } = (config.lora_parameters ?? {}) as { scale?: number; dropout?: number };
  const scaling = numberOf(scale, 20);
  using source = openOne(dir, 'adapters.safetensors');
  const pairs: Pairs = new Map();
  for (const name of source.entries.keys()) {
    const [, path, what] = /^(.+)\.lora_([ab])$/.exec(name) ?? [];
    if (!path) throw notConvertible(`${name} has no place in another format`, dir);
    if (/(^|\.)(embed_tokens|lm_head)$/.test(path)) throw notConvertible(`${path} is an update of a table`, dir);
    half(pairs, path)[what as 'a' | 'b'] = transposed(matrix(source, name));
  }
  const base = typeof config.model === 'string' ? config.model : undefined;
  return { kind: 'lora', base, head: [], dropout: numberOf(dropout, 0), layers: whole(pairs, () => scaling, dir) };
}

function writeMlx(said: AdapterUpdates, work: string, place: string): void {
  if (said.kind !== 'lora') throw notConvertible('mlx-lm has LoRA only, and this is IA3', place);
  if (said.head.length > 0) throw notConvertible("mlx-lm has no place for a task's head", place);
  const { rank, scaling, layers } = alike(said.layers);
  const keys = new Set<string>();
  for (const path of layers.keys()) {
    const [, key] = /^model\.layers\.\d+\.(.+)$/.exec(path) ?? [];
    if (!key) throw notConvertible(`mlx-lm has other names than ${path} for this family`, place);
    keys.add(key);
  }
  const config = {
    fine_tune_type: 'lora',
    ...(said.base && { model: said.base }),
    // All layers; those without an update here get one of zeros.
    num_layers: -1,
    lora_parameters: { rank, scale: scaling, dropout: said.dropout, keys: [...keys] },
  };
  writeFileSync(join(work, 'adapter_config.json'), pythonJson(config));
  const tensors = [...layers].flatMap(([path, { a, b }]) => [
    tensorOf(`${path}.lora_a`, transposed(a)),
    tensorOf(`${path}.lora_b`, transposed(b)),
  ]);
  writeSafetensors(join(work, 'adapters.safetensors'), tensors);
}
