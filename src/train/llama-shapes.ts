/** Common models by their shapes, to plan for what is not on this machine. */
import type { WeightEntry } from '../io/index.ts';
import type { BlockShape } from './budget.ts';

/** The shape of a model of the Llama family. */
export interface LlamaShape extends BlockShape {
  /** What people call it. */
  readonly title: string;
  /** Width of keys and values together: that of all heads, or less where heads share them. */
  readonly kv: number;
  readonly vocab: number;
  readonly tied: boolean;
}

const llama3 = { kv: 1024, vocab: 128_256, tied: false };

/** As the `config.json` of SmolLM2-135M, Llama-3.2-1B, Llama-2-7b, Llama-3.1-70B and Llama-3.1-405B. */
export const llamaShapes = {
  'smollm2-135m': {
    ...{ title: '135M (SmolLM2)', layers: 30, width: 576, inner: 1536, kv: 192 },
    ...{ vocab: 49_152, tied: true },
  },
  'llama-1b': { ...llama3, title: '1B (Llama 3.2)', layers: 16, width: 2048, inner: 8192, kv: 512, tied: true },
  'llama-7b': {
    ...{ title: '7B (Llama 2)', layers: 32, width: 4096, inner: 11_008, kv: 4096 },
    ...{ vocab: 32_000, tied: false },
  },
  'llama-70b': { ...llama3, title: '70B (Llama 3.1)', layers: 80, width: 8192, inner: 28_672 },
  'llama-405b': { ...llama3, title: '405B (Llama 3.1)', layers: 126, width: 16_384, inner: 53_248 },
} as const satisfies Readonly<Record<string, LlamaShape>>;

/** The tensors that a checkpoint of this shape has, by key, in bfloat16, in the order in which a step needs them. */
export function tensorsOf({ layers, width, inner, kv, vocab, tied }: LlamaShape): Map<string, { entry: WeightEntry }> {
  const entries: [string, { entry: WeightEntry }][] = [];
  const add = (name: string, ...shape: number[]) => {
    const bytes = 2 * shape.reduce((a, b) => a * b, 1);
    entries.push([`${name}.weight`, { entry: { name, shape, format: 'bfloat16', bytes } }]);
  };
  add('model.embed_tokens', vocab, width);
  for (let layer = 0; layer < layers; layer++) {
    const block = `model.layers.${layer}`;
    for (const [name, out, inside] of [
      ['self_attn.q_proj', width, width],
      ['self_attn.k_proj', kv, width],
      ['self_attn.v_proj', kv, width],
      ['self_attn.o_proj', width, width],
      ['mlp.gate_proj', inner, width],
      ['mlp.up_proj', inner, width],
      ['mlp.down_proj', width, inner],
    ] as const)
      add(`${block}.${name}`, out, inside);
    for (const norm of ['input_layernorm', 'post_attention_layernorm']) add(`${block}.${norm}`, width);
  }
  add('model.norm', width);
  if (!tied) add('lm_head', vocab, width);
  return new Map(entries);
}
