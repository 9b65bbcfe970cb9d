import { GraftError } from '../base/index.ts';
import type { GgufMetadata } from '../io/index.ts';
import type { GgufNames } from './family.ts';

/** The tensors of a block in GGUF, and their modules in transformers' Llama (gguf-py `tensor_mapping.py`). */
const blockNames: Readonly<Record<string, string>> = {
  attn_norm: 'input_layernorm',
  attn_q: 'self_attn.q_proj',
  attn_k: 'self_attn.k_proj',
  attn_v: 'self_attn.v_proj',
  attn_output: 'self_attn.o_proj',
  attn_q_norm: 'self_attn.q_norm',
  attn_k_norm: 'self_attn.k_norm',
  ffn_norm: 'post_attention_layernorm',
  ffn_gate: 'mlp.gate_proj',
  ffn_up: 'mlp.up_proj',
  ffn_down: 'mlp.down_proj',
};

const otherNames: Readonly<Record<string, string>> = {
  token_embd: 'model.embed_tokens',
  output_norm: 'model.norm',
  output: 'lm_head',
};

/** Returns the mapping of GGUF's tensor names for the Llama family. */
export function ggufLlamaNames(metadata: GgufMetadata): GgufNames {
  const architecture = metadata.get('general.architecture');
  const heads = Number(metadata.get(`${architecture}.attention.head_count`));
  const kvHeads = Number(metadata.get(`${architecture}.attention.head_count_kv`) ?? heads);
  return {
    key(name) {
      const block = /^blk\.(\d+)\.(\w+)\.(weight|bias)$/.exec(name);
      if (block) {
        const to = blockNames[block[2]!];
        return to && `model.layers.${block[1]}.${to}.${block[3]}`;
      }
      const other = /^(\w+)\.(weight|bias)$/.exec(name);
      const to = other && otherNames[other[1]!];
      return to ? `${to}.${other[2]}` : undefined;
    },
    // convert_hf_to_gguf.py interleaves the rows of q and k for the `llama` architecture only.
    interleavedHeads(name) {
      if (architecture !== 'llama') return undefined;
      if (/\.attn_q\.(weight|bias)$/.test(name)) return heads;
      return /\.attn_k\.(weight|bias)$/.test(name) ? kvHeads : undefined;
    },
  };
}

/**
 * Returns the `config.json` for a GGUF file of the Llama family (keys: ggml docs/gguf.md).
 * @throws GraftError 'input' for missing metadata or unsupported rope scaling
 */
export function ggufLlamaConfig(metadata: GgufMetadata, has: (name: string) => boolean): Record<string, unknown> {
  const architecture = String(metadata.get('general.architecture'));
  const optional = (key: string): number | undefined => {
    const value = metadata.get(`${architecture}.${key}`);
    return value === undefined ? undefined : Number(value);
  };
  const required = (key: string): number => {
    const value = optional(key);
    if (value === undefined) throw new GraftError('input', `the GGUF metadata has no '${architecture}.${key}'`);
    return value;
  };
  const heads = required('attention.head_count');
  const tokens = metadata.get('tokenizer.ggml.tokens') as readonly string[] | undefined;
  const scaling = metadata.get(`${architecture}.rope.scaling.type`);
  if (scaling !== undefined && scaling !== 'none' && scaling !== 'linear') {
    throw new GraftError('input', `rope scaling of type '${String(scaling)}' is not supported (none and linear are)`);
  }
  const theta = optional('rope.freq_base') ?? 10_000;
  const window = optional('attention.sliding_window');
  return {
    // A Llama-architecture file with a window is Mistral's.
    model_type: architecture === 'llama' && window ? 'mistral' : architecture,
    vocab_size: tokens?.length ?? required('vocab_size'),
    hidden_size: required('embedding_length'),
    intermediate_size: required('feed_forward_length'),
    num_hidden_layers: required('block_count'),
    num_attention_heads: heads,
    num_key_value_heads: optional('attention.head_count_kv') ?? heads,
    head_dim: optional('attention.key_length') ?? required('embedding_length') / heads,
    rms_norm_eps: required('attention.layer_norm_rms_epsilon'),
    max_position_embeddings: required('context_length'),
    tie_word_embeddings: !has('output.weight'),
    attention_bias: has('blk.0.attn_output.bias'),
    ...(window && { sliding_window: window }),
    rope_parameters:
      scaling === 'linear'
        ? { rope_theta: theta, rope_type: 'linear', factor: required('rope.scaling.factor') }
        : { rope_theta: theta, rope_type: 'default' },
  };
}
