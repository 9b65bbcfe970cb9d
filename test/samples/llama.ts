/** Llamas with random weights, of any size. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { writeSafetensors } from '../../src/io/index.ts';
import { Generator, ops, scope } from '../../src/tensor/index.ts';

export interface LlamaSizes {
  readonly width: number;
  readonly inner: number;
  readonly layers: number;
}

/** Writes a Llama of 96 tokens and four heads, whose embeddings and output projection are two tables. Returns `dir`. */
export function randomLlama(dir: string, { width, inner, layers }: LlamaSizes): string {
  using _ = scope();
  using generator = new Generator(17);
  mkdirSync(dir, { recursive: true });
  const config = {
    model_type: 'llama',
    vocab_size: 96,
    hidden_size: width,
    intermediate_size: inner,
    num_hidden_layers: layers,
    num_attention_heads: 4,
    num_key_value_heads: 4,
    tie_word_embeddings: false,
  };
  const shapes: Record<string, number[]> = {
    'model.embed_tokens.weight': [96, width],
    'model.norm.weight': [width],
    'lm_head.weight': [96, width],
  };
  for (let layer = 0; layer < layers; layer++) {
    const at = `model.layers.${layer}`;
    for (const name of ['q', 'k', 'v', 'o']) shapes[`${at}.self_attn.${name}_proj.weight`] = [width, width];
    for (const name of ['gate', 'up']) shapes[`${at}.mlp.${name}_proj.weight`] = [inner, width];
    shapes[`${at}.mlp.down_proj.weight`] = [width, inner];
    for (const name of ['input', 'post_attention']) shapes[`${at}.${name}_layernorm.weight`] = [width];
  }
  writeFileSync(join(dir, 'config.json'), JSON.stringify(config));
  writeSafetensors(
    join(dir, 'model.safetensors'),
    Object.entries(shapes).map(([name, shape]) => {
      const values = ops.mulScalar(ops.randn(shape, { generator }), 1.6 / Math.sqrt(width));
      return { name, dtype: 'float32' as const, shape, bytes: () => values.bytes() };
    }),
  );
  return dir;
}
