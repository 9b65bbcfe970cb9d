/** LoRA in mlx-lm's layout (mlx_lm/tuner/utils.py load_adapters): y + scale·(x·a)·b with a [in, r], b [r, out]. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { readJsonObject } from '../../io/index.ts';
import { transposed } from '../matrix.ts';
import { openWeightsOf } from '../tensor-files.ts';
import {
  type AdapterUpdates,
  lowRankUpdates,
  matrixToWrite,
  notConvertible,
  numberOr,
  readUpdates,
  stringIn,
  type UpdateFormat,
  type WriteOptions,
  withOneRank,
  writeUpdateFiles,
} from '../update-format.ts';

const weightFile = 'adapters.safetensors';

export const mlxUpdates: UpdateFormat = { holds: isMlx, read, write };

/** Whether a directory is in mlx-lm's layout. */
export function isMlx(dir: string): boolean {
  const file = join(dir, 'adapter_config.json');
  if (!existsSync(file)) return false;
  const config = readJsonObject(file);
  return 'fine_tune_type' in config || 'lora_parameters' in config;
}

function read(dir: string): AdapterUpdates {
  const config = readJsonObject(join(dir, 'adapter_config.json'));
  const type = config.fine_tune_type ?? 'lora';
  if (type !== 'lora') throw notConvertible(`mlx-lm's ${type} has no exact counterpart in other formats`, dir);
  const { scale, dropout } = (config.lora_parameters ?? {}) as { scale?: number; dropout?: number };
  using source = openWeightsOf(dir, [weightFile]);
  const { pairs } = readUpdates(source, source.entries.keys(), dir, (name) => {
    const [, path, part] = /^(.+)\.lora_([ab])$/.exec(name) ?? [];
    if (!path) return undefined;
    if (/(^|\.)(embed_tokens|lm_head)$/.test(path)) {
      throw notConvertible(`${path} is an update of a token table, which conversion does not support`, dir);
    }
    return { path, part: part as 'a' | 'b' };
  });
  const ofPeftShape = [...pairs].map(
    ([path, { a, b }]) => [path, { ...(a && { a: transposed(a) }), ...(b && { b: transposed(b) }) }] as const,
  );
  return {
    kind: 'lora',
    base: stringIn(config.model),
    head: [],
    dropout: numberOr(dropout, 0),
    layers: lowRankUpdates(new Map(ofPeftShape), () => numberOr(scale, 20), dir),
  };
}

function write(updates: AdapterUpdates, work: string, { source }: WriteOptions): void {
  const { kind, base, dropout, head } = updates;
  if (kind !== 'lora') throw notConvertible('mlx-lm supports LoRA only, and this is IA3', source);
  if (head.length > 0) throw notConvertible("mlx-lm does not support a task's head", source);
  const { rank, scaling, layers } = withOneRank(updates.layers);
  const keys = new Set<string>();
  for (const path of layers.keys()) {
    const [, key] = /^model\.layers\.\d+\.(.+)$/.exec(path) ?? [];
    if (!key) throw notConvertible(`mlx-lm names the layers of this model family differently from ${path}`, source);
    keys.add(key);
  }
  const config = {
    fine_tune_type: 'lora',
    ...(base && { model: base }),
    // All layers; those without an update here get one of zeros.
    num_layers: -1,
    lora_parameters: { rank, scale: scaling, dropout, keys: [...keys] },
  };
  const tensors = [...layers].flatMap(([path, { a, b }]) => [
    matrixToWrite(`${path}.lora_a`, transposed(a)),
    matrixToWrite(`${path}.lora_b`, transposed(b)),
  ]);
  writeUpdateFiles(work, config, weightFile, tensors);
}
