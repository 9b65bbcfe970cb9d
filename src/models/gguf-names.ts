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

/** Tensors that are no weights: the divisors of rotary frequencies, which the config holds. */
const noWeight = /^(rope_freqs|rope_factors_(long|short)|blk\.\d+\.attn_rot_embd)\.weight$/;

const inverse = (names: Readonly<Record<string, string>>) => new Map(Object.entries(names).map(([a, b]) => [b, a]));
const [blockByModule, otherByModule] = [inverse(blockNames), inverse(otherNames)];

/** Whether a tensor of a GGUF file is no weight. */
export const isNoWeight = (name: string): boolean => noWeight.test(name);

/** Returns the mapping of GGUF's tensor names for the Llama family. */
export function ggufLlamaNames(metadata: GgufMetadata): GgufNames {
  const architecture = metadata.get('general.architecture');
  const heads = Number(metadata.get(`${architecture}.attention.head_count`));
  const kvHeads = Number(metadata.get(`${architecture}.attention.head_count_kv`) ?? heads);
  return {
    key(name) {
      if (noWeight.test(name)) return undefined;
      const block = /^blk\.(\d+)\.(\w+)\.(weight|bias)$/.exec(name);
      const inBlock = block && blockNames[block[2]!];
      if (inBlock) return `model.layers.${block[1]}.${inBlock}.${block[3]}`;
      const other = /^(\w+)\.(weight|bias)$/.exec(name);
      const outside = other && otherNames[other[1]!];
      // A tensor that the family does not have keeps its name, under which it is reported.
      return outside ? `${outside}.${other[2]}` : name;
    },
    name(key) {
      const [, path, field] = /^(.+)\.(weight|bias)$/.exec(key) ?? [];
      const [, block, inBlock] = /^model\.layers\.(\d+)\.(.+)$/.exec(path ?? '') ?? [];
      const name = inBlock ? blockByModule.get(inBlock) : otherByModule.get(path ?? '');
      if (name === undefined) return undefined;
      return block === undefined ? `${name}.${field}` : `blk.${block}.${name}.${field}`;
    },
    // convert_hf_to_gguf.py interleaves the rows of q and k for the `llama` architecture only.
    interleavedHeads(name) {
      if (architecture !== 'llama') return undefined;
      if (/\.attn_q\.(weight|bias)$/.test(name)) return heads;
      return /\.attn_k\.(weight|bias)$/.test(name) ? kvHeads : undefined;
    },
  };
}
