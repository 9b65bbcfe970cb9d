/** The `config.json` for GGUF files of the Llama family. Keys: ggml docs/gguf.md, gguf-py `constants.py`. */
import { GraftError } from '../base/index.ts';
import type { GgufMetadata, WeightSource } from '../io/index.ts';
import { llama3Frequency } from '../nn/index.ts';

/** Metadata that change the computation, and which the Llama family does not have; with 0, false or these values they do not. */
const neutralValues: Readonly<Record<string, unknown>> = {
  'attention.causal': true,
  'attention.clamp_kqv': 0,
  'attention.max_alibi_bias': 0,
  'attention.scale': 0,
  attn_logit_softcapping: 0,
  embedding_scale: 1,
  expert_count: 0,
  final_logit_softcapping: 0,
  logit_scale: 1,
  residual_scale: 1,
  'rope.dimension_sections': 0,
  'rope.freq_base_swa': 0,
  'rope.scaling.alpha': 0,
  'rope.scaling.yarn_log_multiplier': 0,
  use_parallel_residual: false,
};

/** Reads the metadata of one architecture, `llama.rope.freq_base` as `rope.freq_base`. */
class MetadataReader {
  readonly architecture: string;
  readonly #metadata: GgufMetadata;

  constructor(metadata: GgufMetadata) {
    this.architecture = String(metadata.get('general.architecture'));
    this.#metadata = metadata;
    for (const [key, neutral] of Object.entries(neutralValues)) {
      const value = this.raw(key);
      if (value === undefined || value === neutral || (value === 0 && neutral !== true)) continue;
      throw new GraftError(
        'input',
        `the GGUF metadata '${this.architecture}.${key}' is ${String(value)}, which changes the computation`,
        {
          hint: `Graft's ${this.architecture} models do not have it`,
        },
      );
    }
  }

  raw(key: string): unknown {
    return this.#metadata.get(`${this.architecture}.${key}`);
  }

  optional(key: string): number | undefined {
    const value = this.raw(key);
    if (value === undefined) return undefined;
    // A list has a value for each layer.
    const isList = Array.isArray(value) || ArrayBuffer.isView(value);
    const numbers = (isList ? Array.from(value as ArrayLike<unknown>) : [value]).map((item) =>
      typeof item === 'bigint' ? Number(item) : item,
    );
    const other = numbers.findIndex((item) => item !== numbers[0]);
    const [number] = numbers;
    if (typeof number === 'number' && Number.isFinite(number) && other < 0) return number;
    throw new GraftError(
      'input',
      other > 0
        ? `the GGUF metadata '${this.architecture}.${key}' is ${String(number)} for layer 0 and ${String(numbers[other])} for layer ${other}`
        : `the GGUF metadata '${this.architecture}.${key}' is not a number`,
      { ...(other > 0 && { hint: 'Models whose layers differ in it are not supported' }) },
    );
  }

  required(key: string): number {
    const value = this.optional(key);
    if (value === undefined) throw new GraftError('input', `the GGUF metadata has no '${this.architecture}.${key}'`);
    return value;
  }

  /** Returns the ids of the tokens that begin and end a text and fill rows up. */
  tokenIds(): Record<string, number> {
    const names = { bos_token_id: 'bos', eos_token_id: 'eos', pad_token_id: 'padding' };
    const ids = Object.entries(names).map(([field, name]) => [
      field,
      this.#metadata.get(`tokenizer.ggml.${name}_token_id`),
    ]);
    return Object.fromEntries(ids.filter(([, id]) => Number.isSafeInteger(id)));
  }

  tokenCount(): number | undefined {
    return (this.#metadata.get('tokenizer.ggml.tokens') as readonly string[] | undefined)?.length;
  }
}

/**
 * Returns the `config.json` for a GGUF file of the Llama family.
 * @throws GraftError 'input' for missing metadata, and for metadata that change the computation and are not supported
 */
export function ggufLlamaConfig(source: WeightSource): Record<string, unknown> {
  const metadata = new MetadataReader(source.metadata);
  const { architecture } = metadata;
  const heads = metadata.required('attention.head_count');
  const window = metadata.optional('attention.sliding_window') || undefined;
  const headDim = metadata.optional('attention.key_length') ?? metadata.required('embedding_length') / heads;
  for (const key of ['attention.value_length', 'rope.dimension_count']) {
    const size = metadata.optional(key) ?? headDim;
    if (heads > 0 && size !== headDim) {
      throw new GraftError(
        'input',
        `the GGUF metadata '${architecture}.${key}' is ${size}, and a head has ${headDim} elements`,
        {
          hint: 'Heads of two sizes, and heads that are rotated in part, are not supported',
        },
      );
    }
  }
  return {
    // A Llama-architecture file with a window is Mistral's.
    model_type: architecture === 'llama' && window ? 'mistral' : architecture,
    vocab_size: metadata.tokenCount() ?? metadata.required('vocab_size'),
    hidden_size: metadata.required('embedding_length'),
    intermediate_size: metadata.required('feed_forward_length'),
    num_hidden_layers: metadata.required('block_count'),
    num_attention_heads: heads,
    num_key_value_heads: metadata.optional('attention.head_count_kv') ?? heads,
    head_dim: headDim,
    rms_norm_eps: metadata.required('attention.layer_norm_rms_epsilon'),
    max_position_embeddings: metadata.required('context_length'),
    tie_word_embeddings: !source.entries.has('output.weight'),
    attention_bias: source.entries.has('blk.0.attn_output.bias'),
    mlp_bias: source.entries.has('blk.0.ffn_down.bias'),
    ...metadata.tokenIds(),
    ...(window && { sliding_window: window }),
    rope_parameters: ropeParameters(source, metadata, headDim),
  };
}

/** Returns `rope_parameters` from the metadata, and the divisors of the frequencies that some files have as a tensor. */
function ropeParameters(source: WeightSource, metadata: MetadataReader, headDim: number): Record<string, unknown> {
  const theta = metadata.optional('rope.freq_base') ?? 10_000;
  const context = metadata.required('context_length');
  const original = metadata.optional('rope.scaling.original_context_length') || context;
  // llama.cpp takes a factor without a type as linear.
  const factor = metadata.optional('rope.scaling.factor') || metadata.optional('rope.scale_linear') || 1;
  const type = String(metadata.raw('rope.scaling.type') ?? 'linear');
  const divisors = divisorsOf(source, 'rope_freqs.weight', headDim);
  if (divisors && type !== 'yarn' && type !== 'longrope') {
    return scaledByDivisors(
      divisors.map((divisor) => divisor * (type === 'linear' ? factor : 1)),
      theta,
      context,
    );
  }
  const common = { rope_theta: theta, rope_type: type };
  switch (divisors ? `${type} with rope_freqs.weight` : type) {
    case 'none':
      return { ...common, rope_type: 'default' };
    case 'linear':
      return factor === 1 ? { ...common, rope_type: 'default' } : { ...common, factor };
    case 'yarn':
      return { ...common, factor, original_max_position_embeddings: original, ...yarnParameters(metadata, factor) };
    case 'longrope': {
      const [long, short] = ['long', 'short'].map((length) =>
        divisorsOf(source, `rope_factors_${length}.weight`, headDim),
      );
      if (!long || !short)
        throw new GraftError('input', 'the GGUF file has no rope_factors_long and rope_factors_short');
      const attention_factor = metadata.optional('rope.scaling.attn_factor') || 1;
      const lengths = { factor, original_max_position_embeddings: original };
      return { ...common, ...lengths, attention_factor, long_factor: long, short_factor: short };
    }
    default:
      throw new GraftError(
        'input',
        `rope scaling of type '${type}'${divisors ? ' with rope_freqs.weight' : ''} is not supported`,
        {
          hint: 'none, linear, yarn and longrope are',
        },
      );
  }
}

/** llama.cpp multiplies YaRN's own factor of attention, which transformers computes from `factor` too, by `attn_factor`. */
function yarnParameters(metadata: MetadataReader, factor: number): Record<string, number> {
  const extrapolation = metadata.optional('rope.scaling.yarn_ext_factor') ?? 1;
  if (extrapolation !== 1 && extrapolation !== -1) {
    throw new GraftError(
      'input',
      `the GGUF metadata rope.scaling.yarn_ext_factor is ${extrapolation}; only 1 is supported`,
    );
  }
  const attention =
    (metadata.optional('rope.scaling.yarn_attn_factor') ?? 1) * (metadata.optional('rope.scaling.attn_factor') ?? 1);
  const [fast, slow] = ['fast', 'slow'].map((speed) => metadata.optional(`rope.scaling.yarn_beta_${speed}`));
  return {
    ...(attention !== 1 && { attention_factor: attention * (factor <= 1 ? 1 : 0.1 * Math.log(factor) + 1) }),
    ...(fast && { beta_fast: fast }),
    ...(slow && { beta_slow: slow }),
  };
}

/** Returns one number for each pair of a head's elements; undefined where the file has no such tensor. */
function divisorsOf(source: WeightSource, name: string, headDim: number): number[] | undefined {
  const entry = source.entries.get(name);
  if (!entry) return undefined;
  const pairs = headDim / 2;
  const numbers = new Float32Array(pairs);
  if (entry.format === 'float32' && entry.bytes === numbers.byteLength) {
    source.read(name, new Uint8Array(numbers.buffer));
    if (numbers.every((divisor) => divisor > 0)) return Array.from(numbers);
  }
  throw new GraftError('input', `${name} does not hold ${pairs} positive float32 numbers, one for each pair of a head`);
}

/** Relative difference of two divisors that are the same up to float32's rounding. */
const rounding = 2e-6;

/**
 * Returns the scaling that divides each frequency by a number: Llama 3.1's, whose four numbers the file has lost, where some
 * give the same divisors, else longrope's, which is a list of divisors. Both are in transformers.
 */
function scaledByDivisors(divisors: readonly number[], theta: number, context: number): Record<string, unknown> {
  const frequencies = divisors.map((_, i) => 1 / theta ** (i / divisors.length));
  if (divisors.every((divisor) => divisor === 1)) return { rope_theta: theta, rope_type: 'default' };
  // Low and high are 1 and 4 in all of Llama; the longest wavelength is divided by the factor.
  const [low, high, factor] = [1, 4, Math.max(...divisors)];
  // 8192 is Llama 3's. Others matter only where it does not fit.
  const originals = [8192, ...Array.from({ length: 16 }, (_, power) => 2 ** (power + 4))];
  const original = originals.find((candidate) =>
    divisors.every((divisor, i) => {
      const frequency = Math.fround(frequencies[i]!);
      const got = frequency / llama3Frequency(frequency, { factor, low, high, original: candidate });
      return Math.abs(got / divisor - 1) <= rounding;
    }),
  );
  if (original === undefined) {
    const lists = { short_factor: [...divisors], long_factor: [...divisors] };
    const lengths = { factor: 1, attention_factor: 1, original_max_position_embeddings: context };
    return { rope_theta: theta, rope_type: 'longrope', ...lengths, ...lists };
  }
  const lengths = { factor, low_freq_factor: low, high_freq_factor: high, original_max_position_embeddings: original };
  return { rope_theta: theta, rope_type: 'llama3', ...lengths };
}
