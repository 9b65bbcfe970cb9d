/** A Llama of any size with random numbers, for what only a model of some size shows. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { writeSafetensors } from '../../src/io/index.ts';
import { randomFrom } from './io.ts';

export interface LlamaSize {
  readonly layers: number;
  readonly width: number;
  readonly inner: number;
  readonly vocab: number;
}

/** Writes the model as a Hugging Face directory, in bfloat16, with tied embeddings, and returns `dir`. */
export function randomLlama(dir: string, { layers, width, inner, vocab }: LlamaSize): string {
  mkdirSync(dir, { recursive: true });
  const heads = width / 64;
  const config = {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    hidden_size: width,
    intermediate_size: inner,
    num_hidden_layers: layers,
    num_attention_heads: heads,
    num_key_value_heads: heads,
    vocab_size: vocab,
    max_position_embeddings: 4096,
    rms_norm_eps: 1e-5,
    tie_word_embeddings: true,
  };
  writeFileSync(join(dir, 'config.json'), JSON.stringify(config));
  const random = randomFrom(1);
  const tensor = (name: string, ...shape: number[]) => ({
    name: `model.${name}.weight`,
    dtype: 'bfloat16' as const,
    shape,
    bytes() {
      const numbers = new Uint16Array(shape.reduce((a, b) => a * b, 1));
      // A norm is 1; other numbers are ±0.0156 to ±0.031: a random sign and mantissa.
      for (let i = 0; i < numbers.length; i++) {
        const bits = Math.floor(random() * 256);
        numbers[i] = shape.length === 1 ? 0x3f80 : 0x3c80 | (bits & 0x7f) | ((bits & 0x80) << 8);
      }
      return new Uint8Array(numbers.buffer);
    },
  });
  const blocks = Array.from({ length: layers }, (_, i) => [
    ...['q', 'k', 'v', 'o'].map((name) => tensor(`layers.${i}.self_attn.${name}_proj`, width, width)),
    ...['gate', 'up'].map((name) => tensor(`layers.${i}.mlp.${name}_proj`, inner, width)),
    tensor(`layers.${i}.mlp.down_proj`, width, inner),
    ...['input', 'post_attention'].map((name) => tensor(`layers.${i}.${name}_layernorm`, width)),
  ]);
  const tensors = [tensor('embed_tokens', vocab, width), ...blocks.flat(), tensor('norm', width)];
  writeSafetensors(join(dir, 'model.safetensors'), tensors, { format: 'pt' });
  return dir;
}
