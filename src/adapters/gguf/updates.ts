import { existsSync } from 'node:fs';
import { type GgufField, type GgufTensor, openGguf, writeGguf } from '../../io/index.ts';
import { type GgufBase, ggufBaseOf } from '../../models/index.ts';
import type { Matrix } from '../matrix.ts';
import {
  type AdapterUpdates,
  type LowRankUpdate,
  lowRankUpdates,
  notConvertible,
  readUpdates,
  type UpdateFormat,
  type WriteOptions,
  withOneRank,
} from '../update-format.ts';
import { asPeftNames, isGgufAdapter, readGgufAdapter, reordered } from './file.ts';

export const ggufUpdates: UpdateFormat = { holds: isGgufAdapter, read, write, isFile: true, readsBase: true };

/** @throws GraftError 'usage' where the base is not known: its number of heads decides the order of rows */
function baseOf(base: string | undefined, source: string): GgufBase {
  if (base !== undefined && existsSync(base)) return ggufBaseOf(base);
  const which = base === undefined ? 'the adapter does not name it' : `${base} is not on this machine`;
  throw notConvertible(
    `GGUF needs the config of the base model, and ${which}`,
    source,
    'Name a directory with its config.json, or its .gguf file, as base (--base)',
  );
}

function read(file: string, base?: string): AdapterUpdates {
  using gguf = openGguf(file);
  const { alpha } = readGgufAdapter(gguf);
  using source = asPeftNames(gguf, baseOf(base, file));
  const { pairs } = readUpdates(source, source.entries.keys(), file, (name) => {
    const [, path, part] = /^(.+)\.lora_([AB])\.weight$/.exec(name) ?? [];
    return path ? { path, part: part === 'A' ? 'a' : 'b' } : undefined;
  });
  const layers = lowRankUpdates(pairs, (_, rank) => (alpha === undefined ? 1 : alpha / rank), file);
  return { kind: 'lora', base, head: [], dropout: 0, layers };
}

function write(updates: AdapterUpdates, file: string, { source, base = updates.base }: WriteOptions): void {
  if (updates.kind !== 'lora') throw notConvertible('llama.cpp supports LoRA only, and this is IA3', source);
  if (updates.head.length > 0) throw notConvertible("a GGUF adapter cannot hold a task's head", source);
  const { architecture, names, isTied } = baseOf(base, source);
  const { alpha, layers } = withOneAlpha(updates.layers);
  const tensors: GgufTensor[] = [];
  for (const [path, { a, b }] of layers) {
    const name = names.name(`${path}.weight`);
    if (!name) throw notConvertible(`llama.cpp's ${architecture} models have no layer ${path}`, source);
    if (name === 'output.weight' && isTied)
      throw notConvertible(`llama.cpp cannot update ${path}, which is the table of embeddings in this base`, source);
    const heads = names.interleavedHeads(name);
    const values = heads ? reordered(b.values, b.rows, heads, 'to GGUF') : b.values;
    tensors.push(matrix(`${name}.lora_a`, a), matrix(`${name}.lora_b`, { ...b, values }));
  }
  const text = (value: string): GgufField => ({ type: 'string', value });
  const fields = new Map<string, GgufField>([
    ['general.type', text('adapter')],
    ['general.architecture', text(architecture)],
    ['adapter.type', text('lora')],
    ['adapter.lora.alpha', { type: 'float32', value: alpha }],
  ]);
  writeGguf(file, fields, tensors);
}

const matrix = (name: string, { rows, columns, values }: Matrix): GgufTensor => ({
  name,
  format: 'float32',
  shape: [rows, columns],
  bytes: () => new Uint8Array(values.buffer, values.byteOffset, values.byteLength),
});

/** The file has one α for all updates: where they have several, all get one rank, and B absorbs other scalings. */
function withOneAlpha(layers: ReadonlyMap<string, LowRankUpdate>): {
  alpha: number;
  layers: ReadonlyMap<string, LowRankUpdate>;
} {
  const alphas = [...layers.values()].map(({ a, scaling }) => Math.fround(scaling * a.rows));
  if (alphas.every((alpha) => alpha === alphas[0])) return { alpha: alphas[0]!, layers };
  const { rank, scaling, layers: padded } = withOneRank(layers);
  return { alpha: Math.fround(scaling * rank), layers: padded };
}
