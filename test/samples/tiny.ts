/** A tiny random model with everything that a real one has: weights, config, tokenizer, chat template. */
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { openSafetensors, writeSafetensors } from '../../src/io/index.ts';
import type { DType } from '../../src/tensor/index.ts';
import { golden } from '../support.ts';
import { randomFrom } from './io.ts';

const template = `{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>

{{ message.content }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}`;

/**
 * Writes it into `dir`: the golden llama3 (three blocks, width 32), its embedding table grown to the 600 tokens of the
 * golden tokenizer.
 */
export function tinyModel(dir: string): string {
  mkdirSync(dir, { recursive: true });
  const tokenizer = JSON.parse(readFileSync(golden('tokenizer', 'llama3.json'), 'utf8')) as {
    added_tokens: { id: number; content: string }[];
  };
  const idOf = (content: string) => tokenizer.added_tokens.find((token) => token.content === content)!.id;
  const vocab = Math.max(...tokenizer.added_tokens.map(({ id }) => id)) + 1;
  const config = JSON.parse(readFileSync(golden('models', 'llama3', 'config.json'), 'utf8'));
  const special = { bos_token: '<|begin_of_text|>', eos_token: '<|eot_id|>' };
  const ids = { bos_token_id: idOf(special.bos_token), eos_token_id: idOf(special.eos_token) };
  writeFileSync(join(dir, 'config.json'), JSON.stringify({ ...config, ...ids, vocab_size: vocab }));
  writeFileSync(join(dir, 'tokenizer_config.json'), JSON.stringify(special));
  writeFileSync(join(dir, 'chat_template.jinja'), template);
  copyFileSync(golden('tokenizer', 'llama3.json'), join(dir, 'tokenizer.json'));

  using source = openSafetensors(golden('models', 'llama3', 'model.safetensors'));
  const random = randomFrom(1);
  const table = Float32Array.from({ length: vocab * config.hidden_size }, () => random() - 0.5);
  writeSafetensors(
    join(dir, 'model.safetensors'),
    [...source.entries.values()].map(({ name, format, shape, bytes }) => {
      if (name === 'model.embed_tokens.weight')
        return {
          name,
          dtype: 'float32' as const,
          shape: [vocab, shape[1]!],
          bytes: () => new Uint8Array(table.buffer),
        };
      const stored = new Uint8Array(bytes);
      source.read(name, stored);
      return { name, dtype: format as DType, shape, bytes: () => stored };
    }),
  );
  return dir;
}
