/** The metadata of GGUF files of the Llama family, made from a `config.json`: the inverse of `gguf-config.ts`. */
import { GraftError } from '../base/index.ts';
import type { GgufField, GgufTensor } from '../io/index.ts';
import { ropeOf, ropeScalingOf } from '../nn/index.ts';
import { readConfig } from './config-fields.ts';
import type { GgufModel } from './family.ts';
import { type LlamaConfig, llamaSchema, type ResolvedConfig, resolveConfig } from './llama-config.ts';

const uint = (value: number): GgufField => ({ type: 'uint32', value });
const float = (value: number): GgufField => ({ type: 'float32', value });
const text = (value: string): GgufField => ({ type: 'string', value });

/** What the rotation adds to a file. */
interface RopeParts {
  readonly fields: readonly (readonly [string, GgufField])[];
  readonly tensors: readonly GgufTensor[];
  readonly notes: readonly string[];
}

/**
 * Returns the metadata, and the tensors that are no weights, of a model of the Llama family. Source: llama.cpp
 * `llama-model.cpp`, convert_hf_to_gguf.py.
 * @throws GraftError 'usage' for what llama.cpp does not compute in these architectures
 */
export function ggufLlamaMetadata(raw: Readonly<Record<string, unknown>>): GgufModel {
  const config = readConfig(llamaSchema, raw as Record<string, unknown>);
  const c = resolveConfig(config);
  const architecture = config.model_type === 'mistral' ? 'llama' : config.model_type;
  const window = c.window(0);
  const hasWindows = Array.from({ length: config.num_hidden_layers }, (_, layer) => c.window(layer));
  if (c.activation !== 'silu') throw lacking(architecture, `an MLP with ${config.hidden_act}`);
  if (architecture === 'qwen3' && c.outBias) throw lacking(architecture, 'biases of attention (attention_bias)');
  if (architecture !== 'llama' && hasWindows.some((size) => size > 0))
    throw lacking(architecture, 'a sliding window (use_sliding_window)');
  const rope = ropeParts(config, c, architecture);
  const fields: (readonly [string, GgufField])[] = [
    ['block_count', uint(config.num_hidden_layers)],
    ['context_length', uint(c.positions)],
    ['embedding_length', uint(c.width)],
    ['feed_forward_length', uint(c.inner)],
    ['attention.head_count', uint(c.heads)],
    ['attention.head_count_kv', uint(c.kvHeads)],
    ['attention.key_length', uint(c.headDim)],
    ['attention.value_length', uint(c.headDim)],
    ['attention.layer_norm_rms_epsilon', float(c.eps)],
    ['vocab_size', uint(config.vocab_size)],
    ['rope.dimension_count', uint(c.headDim)],
    ...(window > 0 ? [['attention.sliding_window', uint(window)] as const] : []),
    ...rope.fields,
  ];
  const notes = window > 0 ? [`llama.cpp attends to all tokens, where this model sees the last ${window}`] : [];
  return {
    fields: new Map([
      ['general.architecture', text(architecture)],
      ...fields.map(([key, field]) => [`${architecture}.${key}`, field] as const),
    ]),
    tensors: rope.tensors,
    notes: [...notes, ...rope.notes],
  };
}

const lacking = (architecture: string, what: string) =>
  new GraftError(
    'usage',
    `llama.cpp's ${architecture} models do not have ${what}, so this model cannot be a GGUF file`,
    {
      hint: 'Write a safetensors directory instead (--to int8, int4 …)',
    },
  );

function ropeParts(config: LlamaConfig, c: ResolvedConfig, architecture: string): RopeParts {
  const fields = { ...config, max_position_embeddings: c.positions };
  const { type, theta, original, parameters } = ropeScalingOf(fields);
  const rope = ropeOf(fields, c.headDim);
  const base = ['rope.freq_base', float(theta)] as const;
  const only = (more: RopeParts['fields'] = []): RopeParts => ({ fields: [base, ...more], tensors: [], notes: [] });
  const scaling = (key: string, field: GgufField) => [`rope.scaling.${key}`, field] as const;
  const needsLlama = (what: string) => {
    if (architecture !== 'llama') throw lacking(architecture, what);
  };
  switch (type) {
    case 'default':
      return only();
    case 'linear':
      return only([scaling('type', text('linear')), scaling('factor', float(Number(parameters.factor)))]);
    case 'llama3': {
      needsLlama('the rotary scaling of Llama 3');
      const plain = ropeOf({ max_position_embeddings: c.positions, rope_theta: theta }, c.headDim).frequencies(0);
      const divisors = rope.frequencies(0).map((frequency, i) => plain[i]! / frequency);
      return { fields: [base], tensors: [divisorsTensor('rope_freqs.weight', divisors)], notes: [] };
    }
    case 'yarn': {
      if (parameters.truncate === false)
        throw lacking(architecture, 'rotary scaling of the type yarn without truncate');
      const factor = Number(parameters.factor ?? c.positions / original);
      const implied = factor <= 1 ? 1 : 0.1 * Math.log(factor) + 1;
      const optional = (['beta_fast', 'beta_slow'] as const).flatMap((key) =>
        parameters[key] ? [scaling(`yarn_${key}`, float(Number(parameters[key])))] : [],
      );
      return only([
        scaling('type', text('yarn')),
        scaling('factor', float(factor)),
        scaling('original_context_length', uint(original)),
        ...(rope.attentionFactor === implied ? [] : [scaling('attn_factor', float(rope.attentionFactor / implied))]),
        ...optional,
      ]);
    }
    case 'longrope': {
      needsLlama('rotary scaling of the type longrope');
      const lists = (['long', 'short'] as const).map((length) =>
        divisorsTensor(`rope_factors_${length}.weight`, Float32Array.from(parameters[`${length}_factor`] as number[])),
      );
      return {
        fields: [
          base,
          scaling('type', text('longrope')),
          scaling('original_context_length', uint(original)),
          scaling('attn_factor', float(rope.attentionFactor)),
        ],
        tensors: lists,
        notes: [`llama.cpp takes the long or the short factors by its context size, and not by the length of a text`],
      };
    }
    default:
      throw lacking(architecture, `rotary scaling of the type ${type}`);
  }
}

const divisorsTensor = (name: string, divisors: Float32Array): GgufTensor => ({
  name,
  format: 'float32',
  shape: [divisors.length],
  bytes: () => new Uint8Array(divisors.buffer),
});
