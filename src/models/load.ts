import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import {
  type BlockFormat,
  blockFormats,
  isBlockFormat,
  openGguf,
  openSafetensors,
  readJsonObject,
  type WeightEntry,
  type WeightSource,
} from '../io/index.ts';
import { Embedding, fused, type Kernels, Linear, type Model, type Weights } from '../nn/index.ts';
import { type DType, detachFromScopes, noGrad, ops, scope, Tensor } from '../tensor/index.ts';
import type { Family } from './family.ts';
import { requireMemory } from './memory.ts';
import { families } from './registry.ts';

/**
 * How the weights of linear layers and embeddings are held in memory.
 * - `none`: dense, in the kernels' type (float32 with the fused ones)
 * - `keep`: as the file stores them (GGUF blocks, bfloat16, float16), unpacked where they are used
 * - `int8`: blocks of 32 with one scale (GGUF's Q8_0); `nf4`: blocks of 64 on the NormalFloat grid (arXiv 2305.14314)
 */
export type Quantize = 'none' | 'keep' | 'int8' | 'nf4';

export interface LoadOptions {
  readonly quantize?: Quantize;
  readonly kernels?: Kernels;
  /** Element type of dense weights; the fused kernels need float32. */
  readonly dtype?: DType;
  readonly progress?: (loaded: number, total: number) => void;
}

/** Numbers by which the native side knows storage formats (native/kernels/blocks.h); −1: dense. */
export const formatIds: Readonly<Record<string, number>> = {
  ...Object.fromEntries(Object.entries(blockFormats).map(([name, { id }]) => [name, id])),
  float16: 1,
  bfloat16: 30,
  nf4: 100,
};

const quantizers = { int8: formatIds.q8_0!, nf4: formatIds.nf4! } as const;
const blockElements = { int8: 32, nf4: 64 } as const;

/** Weights that do not fit, after which no more are looked for. */
const tooMany = 1000;

/** A stored tensor under the key that the family asks for, with its rows put in order. */
interface Stored {
  readonly entry: WeightEntry;
  readonly interleavedHeads: number | undefined;
}

/**
 * Loads a model from a Hugging Face directory (config.json and safetensors) or a GGUF file.
 * @throws GraftError 'input' for a broken file or an unknown family, 'mismatch' listing every weight that does not fit
 */
export function loadModel(path: string, options: LoadOptions = {}): Model {
  const { source, config, family, stored } = openModel(path);
  using _ = source;
  const entries = [...stored.values()].map(({ entry }) => entry);
  requireMemory(path, entries, options.quantize ?? 'none', options.dtype);
  return noGrad(() => {
    const weights = new LoadedWeights(path, source, stored, options);
    try {
      const model = family.build(config, weights);
      weights.finish();
      return model;
    } catch (cause) {
      weights.release();
      throw placed(cause, path);
    }
  });
}

/** The config and the list of weights, without reading any. */
export function openModel(path: string): {
  source: WeightSource;
  config: Record<string, unknown>;
  family: Family;
  stored: Map<string, Stored>;
} {
  if (!existsSync(path)) throw new GraftError('input', 'there is no such model file or directory', { place: path });
  try {
    return statSync(path).isDirectory() ? openDirectory(path) : openGgufModel(path);
  } catch (error) {
    throw placed(error, path);
  }
}

/** An error about a config, with the file that the config is from. */
function placed(error: unknown, path: string): unknown {
  if (!(error instanceof GraftError) || error.place) return error;
  return error.at(statSync(path).isDirectory() ? join(path, 'config.json') : path);
}

function openDirectory(path: string) {
  const config = readJsonObject(join(path, 'config.json'));
  const type = String(config.model_type);
  const family = families.find((f) => f.types.includes(type));
  if (!family) {
    throw new GraftError('input', `model_type '${type}' is not one that Graft knows`, {
      place: join(path, 'config.json'),
      mend: `Known are ${families.flatMap((f) => f.types).join(', ')}`,
    });
  }
  const source = openSafetensors(path);
  const stored = new Map([...source.entries].map(([name, entry]) => [name, { entry, interleavedHeads: undefined }]));
  return { source, config, family, stored };
}

function openGgufModel(path: string) {
  const source = openGguf(path);
  const architecture = String(source.metadata.get('general.architecture'));
  const family = families.find((f) => f.gguf?.architectures.includes(architecture));
  if (!family?.gguf) {
    source[Symbol.dispose]();
    throw new GraftError('input', `the GGUF architecture '${architecture}' is not one that Graft knows`, {
      place: path,
      mend: `Known are ${families.flatMap((f) => f.gguf?.architectures ?? []).join(', ')}`,
    });
  }
  const names = family.gguf.names(source.metadata);
  const stored = new Map<string, Stored>();
  for (const [name, entry] of source.entries) {
    const key = names.key(name);
    if (key) stored.set(key, { entry, interleavedHeads: names.interleavedHeads(name) });
  }
  const config = family.gguf.config(source.metadata, (name) => source.entries.has(name));
  // Llama 3's stretched rope is in the file as one divisor per frequency.
  const divisors = source.entries.get('rope_freqs.weight');
  if (divisors) {
    const values = new Float32Array(divisors.bytes / 4);
    source.read('rope_freqs.weight', new Uint8Array(values.buffer));
    config.rope_parameters = {
      ...(config.rope_parameters as object),
      rope_type: 'divisors',
      divisors: Array.from(values),
    };
  }
  return { source, config, family, stored };
}

class LoadedWeights implements Weights {
  readonly kernels: Kernels;
  readonly dtype: DType;
  readonly #path: string;
  readonly #source: WeightSource;
  readonly #stored: ReadonlyMap<string, Stored>;
  readonly #quantize: Quantize;
  readonly #progress: LoadOptions['progress'];
  readonly #tensors: Tensor[] = [];
  readonly #used = new Set<string>();
  readonly #problems: string[] = [];
  parameters = 0;

  constructor(path: string, source: WeightSource, stored: ReadonlyMap<string, Stored>, options: LoadOptions) {
    this.kernels = options.kernels ?? fused;
    this.dtype = options.dtype ?? 'float32';
    this.#path = path;
    this.#source = source;
    this.#stored = stored;
    this.#quantize = options.quantize ?? 'none';
    this.#progress = options.progress;
  }

  has(key: string): boolean {
    return this.#stored.has(key);
  }

  linear(path: string, outFeatures: number, inFeatures: number, bias = false): Linear {
    const { tensor, format } = this.#matrix(`${path}.weight`, outFeatures, inFeatures);
    const biasTensor = bias ? this.vector(`${path}.bias`, outFeatures) : undefined;
    return new Linear(this.kernels, tensor, format, inFeatures, biasTensor);
  }

  embedding(path: string, rows: number, width: number): Embedding {
    const { tensor, format } = this.#matrix(`${path}.weight`, rows, width);
    return new Embedding(tensor, format, width);
  }

  tied(path: string, embedding: Embedding): Linear {
    // Some checkpoints store the shared table twice.
    this.#used.add(`${path}.weight`);
    return new Linear(this.kernels, embedding.weight, embedding.format, embedding.width);
  }

  vector(key: string, size: number): Tensor {
    const stored = this.#find(key, [size]);
    if (!stored) return this.#own(ops.zeros([size], { dtype: this.dtype }));
    return this.#own(this.#dense(stored));
  }

  /** @throws GraftError 'mismatch' with all that was missing or misshapen */
  finish(): void {
    const extra = [...this.#stored.keys()].filter((key) => !this.#used.has(key) && !/rotary_emb\.inv_freq$/.test(key));
    if (extra.length > 0)
      this.#problems.push(
        `the model has no place for ${extra.slice(0, 5).join(', ')}${extra.length > 5 ? ` and ${extra.length - 5} more` : ''}`,
      );
    if (this.#problems.length > 0) this.#refuse();
  }

  #refuse(): never {
    throw new GraftError(
      'mismatch',
      `the weights do not fit the config: ${this.#problems.slice(0, 12).join('; ')}${this.#problems.length > 12 ? `; and ${this.#problems.length - 12} more` : ''}`,
      {
        place: this.#path,
        data: { problems: this.#problems },
      },
    );
  }

  release(): void {
    for (const tensor of this.#tensors.splice(0)) tensor.dispose();
  }

  #own(tensor: Tensor): Tensor {
    this.#tensors.push(detachFromScopes(tensor));
    return tensor;
  }

  #find(key: string, shape: readonly number[]): Stored | undefined {
    const stored = this.#stored.get(key);
    this.#used.add(key);
    this.#progress?.(this.#used.size, this.#stored.size);
    if (!stored) {
      this.#problems.push(`${key} [${shape.join(', ')}] is missing`);
      if (this.#problems.length > tooMany) this.#refuse(); // a number of layers that is nonsense
      return undefined;
    }
    const got = stored.entry.shape;
    if (got.length !== shape.length || got.some((n, i) => n !== shape[i])) {
      this.#problems.push(`${key} is [${got.join(', ')}], the config asks for [${shape.join(', ')}]`);
      return undefined;
    }
    this.parameters += shape.reduce((a, b) => a * b, 1);
    return stored;
  }

  /** A [rows, width] weight in the form that `quantize` asks for. */
  #matrix(key: string, rows: number, width: number): { tensor: Tensor; format: number } {
    const stored = this.#find(key, [rows, width]);
    if (!stored) return { tensor: this.#own(Tensor.empty([0, width], this.dtype)), format: -1 };
    const { format } = stored.entry;
    const id = formatIds[format];
    if (this.#quantize === 'keep' && id !== undefined) {
      return { tensor: this.#own(this.#raw(stored)), format: id };
    }
    if (this.#quantize === 'int8' || this.#quantize === 'nf4') {
      if (width % blockElements[this.#quantize] !== 0) {
        throw new GraftError(
          'usage',
          `${key} is ${width} wide, and ${this.#quantize} needs a multiple of ${blockElements[this.#quantize]}`,
          {
            place: this.#path,
            mend: 'Load this model with quantize: none',
          },
        );
      }
      using s = scope();
      return {
        tensor: this.#own(s.keep(ops.quantize(this.#dense(stored, 'float32'), quantizers[this.#quantize]))),
        format: quantizers[this.#quantize],
      };
    }
    return { tensor: this.#own(this.#dense(stored)), format: -1 };
  }

  /** The stored bytes as uint8 [rows, bytes of a row]. */
  #raw({ entry, interleavedHeads }: Stored): Tensor {
    using s = scope();
    const rows = entry.shape.length > 1 ? entry.shape[0]! : 1;
    const tensor = Tensor.empty([rows, entry.bytes / rows], 'uint8');
    this.#source.read(entry.name, tensor.bytes());
    return s.keep(interleavedHeads ? deinterleaved(tensor, interleavedHeads) : tensor);
  }

  #dense(stored: Stored, dtype = this.dtype): Tensor {
    using s = scope();
    const { entry } = stored;
    const { format, shape } = entry;
    let dense: Tensor;
    if (isBlockFormat(format)) {
      dense = ops.dequantize(this.#raw(stored), formatIds[format satisfies BlockFormat]!);
    } else {
      dense = Tensor.empty(shape, format);
      this.#source.read(entry.name, dense.bytes());
      if (stored.interleavedHeads) dense = deinterleaved(dense, stored.interleavedHeads);
    }
    if (dense.dtype !== dtype) dense = ops.toCopy(dense, { dtype });
    return s.keep(ops.view(dense, shape));
  }
}

/** Undoes convert_hf_to_gguf.py: within a head, row 2i comes from the first half and row 2i + 1 from the second. */
function deinterleaved(tensor: Tensor, heads: number): Tensor {
  using s = scope();
  const rows = tensor.shape.length > 1 ? tensor.size(0) : tensor.numel;
  const flat = ops.view(tensor, [heads, rows / heads / 2, 2, tensor.numel / rows]);
  return s.keep(ops.view(ops.contiguous(ops.transpose(flat, 1, 2)), tensor.shape));
}
