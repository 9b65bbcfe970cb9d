/**
 * LoRA as a GGUF file for llama.cpp (`llama-adapter.cpp`, convert_lora_to_gguf.py): `TENSOR.lora_a` [r, in] and `TENSOR.lora_b`
 * [out, r] for the tensors of the base under GGUF's names, and `adapter.lora.alpha` α; the update is scaled by α/r. The rows of B
 * have the order that GGUF gives those of the base.
 */
import { existsSync, statSync } from 'node:fs';
import { GraftError } from '../../base/index.ts';
import { type GgufSource, openGguf, type WeightEntry, type WeightSource } from '../../io/index.ts';
import { type GgufBase, ggufNamesOf } from '../../models/index.ts';

/** Whether a path is a GGUF file that holds an adapter. */
export function isGgufAdapter(path: string): boolean {
  if (!path.endsWith('.gguf') || !existsSync(path) || !statSync(path).isFile()) return false;
  using source = openGguf(path);
  return source.metadata.get('general.type') === 'adapter';
}

/** A matrix of an update: the layer's path in the Hugging Face model, and its name in the file. */
export interface StoredPart {
  readonly path: string;
  readonly part: 'a' | 'b';
  /** GGUF's name of the base's tensor. */
  readonly tensor: string;
  readonly entry: WeightEntry;
}

/** What an adapter's file holds. */
export interface GgufAdapter {
  readonly architecture: string;
  /** α; undefined where updates are not scaled. */
  readonly alpha: number | undefined;
  readonly parts: readonly StoredPart[];
}

/** Metadata that change what an adapter computes, and which Graft does not have. */
const unsupported: Readonly<Record<string, string>> = {
  'adapter.alora.invocation_tokens': 'it acts only after certain tokens (activated LoRA)',
  'adapter.lora.prompt_prefix': 'it expects a text before each prompt',
};

/** Reads the header of an adapter. @throws GraftError 'input' for what is not LoRA of linear layers that Graft has */
export function readGgufAdapter(source: GgufSource): GgufAdapter {
  const { metadata, path: place } = source;
  const fail = (problem: string) => new GraftError('input', problem, { place });
  const type = metadata.get('adapter.type');
  if (type !== 'lora') throw fail(`this GGUF adapter has the type ${JSON.stringify(type)}, and Graft reads lora`);
  for (const [key, meaning] of Object.entries(unsupported)) {
    const value = metadata.get(key);
    if (value !== undefined && (value as { length?: number }).length !== 0)
      throw fail(`this adapter has ${key}: ${meaning}, which Graft does not do`);
  }
  const alpha = metadata.get('adapter.lora.alpha');
  if (alpha !== undefined && !(typeof alpha === 'number' && alpha >= 0))
    throw fail(`adapter.lora.alpha is ${String(alpha)}, not a positive number`);
  const architecture = String(metadata.get('general.architecture'));
  const names = ggufNamesOf(architecture, place);
  const parts = [...source.entries.values()].map((entry): StoredPart => {
    const [, tensor, part] = /^(.+)\.lora_([ab])$/.exec(entry.name) ?? [];
    if (!tensor) throw fail(`the tensor ${entry.name} is no part of a LoRA update`);
    const key = names.key(tensor);
    if (!key?.endsWith('.weight') || key === tensor)
      throw fail(`${tensor} is no layer of the architecture ${architecture}`);
    if (tensor === 'token_embd.weight')
      throw fail('this adapter updates the token embeddings, which Graft does not read from GGUF');
    if (entry.shape.length !== 2) throw fail(`${entry.name} is not a matrix`);
    return { path: key.slice(0, -'.weight'.length), part: part as 'a' | 'b', tensor, entry };
  });
  if (parts.length === 0) throw fail('the adapter holds no updates');
  return { architecture, alpha: alpha || undefined, parts };
}

/** The names of A and B in PEFT's models. */
const peftParts = { a: 'lora_A.weight', b: 'lora_B.weight' } as const;

/**
 * The matrices of an adapter under the names of PEFT's models (`layers.0.self_attn.q_proj.lora_A.weight`), the rows of B in their
 * order.
 * @throws GraftError 'mismatch' for an adapter of another architecture
 */
export function asPeftNames(source: GgufSource, base: GgufBase): WeightSource {
  const { architecture, parts } = readGgufAdapter(source);
  if (architecture !== base.architecture) {
    throw new GraftError(
      'mismatch',
      `the adapter is for the architecture ${architecture}, and the base has ${base.architecture}`,
      {
        place: source.path,
      },
    );
  }
  const byName = new Map(parts.map((stored) => [`${stored.path}.${peftParts[stored.part]}`, stored]));
  return {
    path: source.path,
    metadata: source.metadata,
    entries: new Map([...byName].map(([name, { entry }]) => [name, { ...entry, name }])),
    read(name, into) {
      const { part, tensor, entry } = byName.get(name)!;
      source.read(entry.name, into);
      const heads = part === 'b' ? base.names.interleavedHeads(tensor) : undefined;
      if (heads) into.set(reordered(into, entry.shape[0]!, heads, 'from GGUF'));
    },
    [Symbol.dispose]: () => source[Symbol.dispose](),
  };
}

/** Returns rows in the order of convert_hf_to_gguf.py, where row i of a head's second half follows its row i, or in that of the checkpoint. */
export function reordered<T extends Uint8Array | Float32Array>(
  values: T,
  rows: number,
  heads: number,
  direction: 'to GGUF' | 'from GGUF',
): T {
  const width = values.length / rows;
  const size = rows / heads;
  const result = values.slice() as T;
  for (let row = 0; row < rows; row++) {
    const [head, i] = [Math.floor(row / size), row % size];
    const other = head * size + (i < size / 2 ? 2 * i : 2 * (i - size / 2) + 1);
    const [from, to] = direction === 'to GGUF' ? [row, other] : [other, row];
    result.set(values.subarray(from * width, (from + 1) * width), to * width);
  }
  return result;
}
