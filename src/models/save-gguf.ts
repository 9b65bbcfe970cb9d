import { statSync } from 'node:fs';
import { GraftError } from '../base/index.ts';
import { type GgufField, type GgufTensor, openGguf, writeGguf } from '../io/index.ts';
import { Embedding, Linear, type Model } from '../nn/index.ts';
import { type FormatName, formats, isBlockFormat, isIntegerFormat, pack } from '../quant/index.ts';
import { type DType, ops, scoped, type Tensor } from '../tensor/index.ts';
import type { FormatOf, WrittenFormat } from './export-formats.ts';
import type { GgufModel } from './family.ts';
import { generalFields } from './gguf-general.ts';
import { isNoWeight } from './gguf-names.ts';
import { families } from './registry.ts';
import { convertedBytes, quantisedOrRefused, storedTensors } from './save.ts';

/** Metadata that describe one file and its weights, and not the model. */
const ofTheFile = /^(general\.(file_type|quantization_version|alignment)|split\.|quantize\.)/;

/** Version 2 of the block formats, which all builds of llama.cpp since May 2023 read (`GGML_QNT_VERSION`). */
const quantizationVersion = 2;

/** Options of `saveGguf`. */
export interface SaveGgufOptions {
  /** Path that the model was loaded from: a GGUF file gives its metadata as they are, a directory its name and licence. */
  readonly source: string;
  readonly formatOf: FormatOf;
  /** The tokenizer's metadata, for a model from a directory. Default: the file has no tokenizer, and llama.cpp reads only ids. */
  readonly tokenizer?: ReadonlyMap<string, GgufField> | undefined;
  /** Is called before each tensor is written; it may throw to stop. */
  readonly progress?: (written: number, total: number) => void;
}

/**
 * Checks that GGUF can hold a model, before anything is computed.
 * @throws GraftError 'usage' for families, tasks and fields of the config that llama.cpp does not compute
 */
export function requireGguf(model: Pick<Model, 'family' | 'task' | 'config'>): GgufModel {
  const { gguf } = families.find(({ types }) => types.includes(model.family))!;
  const supported = families.flatMap((family) => (family.gguf ? family.types : [])).join(', ');
  const type = String(model.config.model_type);
  if (!gguf) {
    throw new GraftError('usage', `a model of the type ${type} cannot be a GGUF file: Graft writes ${supported}`, {
      hint: 'Write a safetensors directory instead (--to int8, int4 …)',
    });
  }
  if (model.task.name !== 'causal-lm') {
    throw new GraftError('usage', `a GGUF file holds a language model, and this one is for ${model.task.name}`, {
      hint: 'Write a safetensors directory instead (--to int8, int4 …)',
    });
  }
  return gguf.metadata(model.config);
}

/**
 * Writes the model as a GGUF file for llama.cpp, one tensor at a time: matrices in the formats that `formatOf` names, all else
 * in float32. A weight that is held in the format already is written as it is.
 * @returns what llama.cpp computes differently, a sentence each
 * @throws GraftError 'usage' for a model that llama.cpp does not have; 'state' where an adapter is enabled but not merged;
 *   'numeric' for a weight that a format cannot hold; 'environment' for a full disk or missing rights
 */
export function saveGguf(model: Model, path: string, options: SaveGgufOptions): readonly string[] {
  const described = requireGguf(model);
  const { gguf } = families.find(({ types }) => types.includes(model.family))!;
  using source = statSync(options.source).isFile() ? openGguf(options.source) : undefined;
  const metadata = source
    ? new Map([...source.fields].filter(([key]) => !ofTheFile.test(key)))
    : new Map([
        ...generalFields(options.source),
        ...described.fields,
        ...(options.tokenizer ?? withoutTokenizer(model.config)),
      ]);
  const names = gguf!.names(new Map([...metadata].map(([key, { value }]) => [key, value])));
  const tensors: GgufTensor[] = source
    ? [...source.entries.values()]
        .filter(({ name }) => isNoWeight(name))
        .map((entry) => ({ ...entry, bytes: () => bytesOf(entry.bytes, (into) => source.read(entry.name, into)) }))
    : [...described.tensors];
  const seen = new Set<Tensor>();
  const used: FormatName[] = [];
  for (const { name: key, path: place, module, field, tensor } of storedTensors(model)) {
    if (seen.has(tensor)) continue;
    seen.add(tensor);
    const name = names.name(key);
    if (name === undefined) throw new GraftError('usage', `GGUF has no name for the tensor ${key}`, { place: path });
    const heads = names.interleavedHeads(name);
    const isMatrix = (module instanceof Linear || module instanceof Embedding) && field === 'weight';
    if (!isMatrix) {
      const bytes = () => convertedBytes(key, () => interleaved(tensor, heads), 'float32');
      tensors.push({ name, format: 'float32', shape: tensor.shape, bytes });
      continue;
    }
    const written = options.formatOf(place) ?? ({ format: 'float32' } as const);
    const format = requireGgufFormat(written, key);
    used.push(format);
    const shape = [tensor.size(0), module instanceof Linear ? module.inFeatures : module.width];
    tensors.push({ name, format, shape, bytes: () => matrixBytes(key, module, written, heads) });
  }
  const total = tensors.length;
  const told = tensors.map(
    (tensor, i): GgufTensor => ({
      ...tensor,
      bytes() {
        options.progress?.(i, total);
        return tensor.bytes();
      },
    }),
  );
  writeGguf(path, new Map([...metadata, ...fileFields(used)]), told);
  return described.notes;
}

function bytesOf(size: number, fill: (into: Uint8Array) => void): Uint8Array {
  const bytes = new Uint8Array(size);
  fill(bytes);
  return bytes;
}

/** @throws GraftError 'usage' for a format that llama.cpp has no kernel for */
function requireGgufFormat({ format }: WrittenFormat, key: string): FormatName {
  if (!isIntegerFormat(format as never) && formats[format as FormatName].ggufFileType !== undefined)
    return format as FormatName;
  throw new GraftError('usage', `llama.cpp has no kernel for ${format}, the format of ${key}`, {
    hint: 'Write integers as a directory (--to int8, int4 … with --out DIR)',
  });
}

/** Returns the rows of a matrix in a format, in the order that GGUF has them. */
function matrixBytes(key: string, layer: Linear | Embedding, written: WrittenFormat, heads: number | undefined) {
  const format = written.format as FormatName;
  if (formats[format].nativeId === layer.format) return scopedBytes(() => interleaved(layer.weight, heads));
  if (!isBlockFormat(format)) {
    return convertedBytes(key, () => interleaved(layer.denseWeight(), heads), format as DType);
  }
  return scopedBytes(() => {
    const dense = layer.denseWeight();
    return interleaved(
      quantisedOrRefused(key, format, () => pack(dense, { format } as never).weight),
      heads,
    );
  });
}

function scopedBytes(make: () => Tensor): Uint8Array {
  let bytes = new Uint8Array();
  scoped(() => {
    bytes = new Uint8Array(make().bytes());
    return undefined;
  });
  return bytes;
}

/** Brings the rows of each head into the order of convert_hf_to_gguf.py: row i of its second half follows its row i. */
function interleaved(tensor: Tensor, heads: number | undefined): Tensor {
  if (!heads) return tensor;
  const rows = tensor.shape.length > 1 ? tensor.size(0) : tensor.numel;
  const halves = ops.view(ops.contiguous(tensor), [heads, 2, rows / heads / 2, tensor.numel / rows]);
  return ops.view(ops.contiguous(ops.transpose(halves, 1, 2)), tensor.shape);
}

/** What the metadata say of the weights: the format of most matrices, and the version of the block formats. */
function fileFields(used: readonly FormatName[]): [string, GgufField][] {
  const counts = new Map<FormatName, number>();
  for (const format of used) counts.set(format, (counts.get(format) ?? 0) + 1);
  const [[most] = ['float32' as const]] = [...counts].sort(([, a], [, b]) => b - a);
  const uint = (value: number): GgufField => ({ type: 'uint32', value });
  return [
    ['general.file_type', uint(formats[most].ggufFileType!)],
    ...(used.some(isBlockFormat)
      ? ([['general.quantization_version', uint(quantizationVersion)]] as [string, GgufField][])
      : []),
  ];
}

/** A file that only reads ids, with the special ones of the config. */
function withoutTokenizer(config: Readonly<Record<string, unknown>>): [string, GgufField][] {
  const roles = { bos: config.bos_token_id, eos: [config.eos_token_id].flat()[0], padding: config.pad_token_id };
  return [
    ['tokenizer.ggml.model', { type: 'string', value: 'no_vocab' }],
    ...Object.entries(roles).flatMap(([role, id]): [string, GgufField][] =>
      Number.isSafeInteger(id) && Number(id) >= 0
        ? [[`tokenizer.ggml.${role}_token_id`, { type: 'uint32', value: Number(id) }]]
        : [],
    ),
  ];
}
