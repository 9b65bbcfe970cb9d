/** Llamas with random weights, of any size. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { writeSafetensors } from '../../src/io/index.ts';
import { Generator, ops, scope } from '../../src/tensor/index.ts';

export interface LlamaSizes {
  readonly width: number;
  readonly inner: number;
  readonly layers: number;
  /** Tokens of the vocabulary. Default: 96. */
  readonly vocab?: number;
  /** Default: 4. */
  readonly heads?: number;
  /** Whether the output projection is the table of the embeddings. Default: false. */
  readonly tied?: boolean;
  /** Default: float32. */
  readonly dtype?: 'float32' | 'bfloat16';
}

/** Writes a Llama and returns `dir`. The engine runs already. */
export function randomLlama(
  dir: string,
  { width, inner, layers, vocab = 96, heads = 4, tied = false, dtype = 'float32' }: LlamaSizes,
): string {
  using generator = new Generator(17);
  mkdirSync(dir, { recursive: true });
  const config = {
    model_type: 'llama',
    vocab_size: vocab,
    hidden_size: width,
    intermediate_size: inner,
    num_hidden_layers: layers,
    num_attention_heads: heads,
    num_key_value_heads: heads,
    tie_word_embeddings: tied,
  };
  const shapes: Record<string, number[]> = {
    'model.embed_tokens.weight': [vocab, width],
    'model.norm.weight': [width],
    ...(!tied && { 'lm_head.weight': [vocab, width] }),
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
      const bytes = () => {
        using _ = scope();
        const values = ops.mulScalar(ops.randn(shape, { generator }), 1.6 / Math.sqrt(width));
        return ops.toCopy(values, { dtype }).bytes();
      };
      return { name, dtype, shape, bytes };
    }),
  );
  return dir;
}
