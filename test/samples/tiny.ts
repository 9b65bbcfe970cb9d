/** Tiny random models with the files of a real one: weights, config, tokenizer, chat template. */
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { openSafetensors, writeSafetensors } from '../../src/io/index.ts';
import type { DType } from '../../src/tensor/index.ts';
import { golden } from '../support.ts';
import { randomFrom } from './io.ts';

const template = `{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>

{{ message.content }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}`;

/** Copies the weights of a golden, with one table enlarged to `rows` rows of random numbers. */
function copyEnlarged(from: string, to: string, table: string, rows: number): void {
  using source = openSafetensors(from);
  const random = randomFrom(1);
  writeSafetensors(
    to,
    [...source.entries.values()].map(({ name, format, shape, bytes }) => {
      const isTable = name === table;
      const stored = new Uint8Array(isTable ? 4 * rows * shape[1]! : bytes);
      if (isTable) {
        const values = new Float32Array(stored.buffer);
        for (let i = 0; i < values.length; i++) values[i] = random() - 0.5;
      } else source.read(name, stored);
      return { name, dtype: format as DType, shape: isTable ? [rows, shape[1]!] : shape, bytes: () => stored };
    }),
  );
}

/** Writes a golden BERT (two layers, width 32, 48 positions), its table enlarged to the golden WordPiece vocabulary. */
function writeBert(dir: string, name: string, table: string): string {
  mkdirSync(dir, { recursive: true });
  const tokenizer = JSON.parse(readFileSync(golden('tokenizer', 'bert.json'), 'utf8')) as {
    model: { vocab: Record<string, number> };
  };
  const vocab = Math.max(...Object.values(tokenizer.model.vocab)) + 1;
  const config = JSON.parse(readFileSync(golden('families', name, 'config.json'), 'utf8'));
  writeFileSync(join(dir, 'config.json'), JSON.stringify({ ...config, vocab_size: vocab }));
  writeFileSync(join(dir, 'tokenizer_config.json'), JSON.stringify({ cls_token: '[CLS]', sep_token: '[SEP]' }));
  copyFileSync(golden('tokenizer', 'bert.json'), join(dir, 'tokenizer.json'));
  copyEnlarged(golden('families', name, 'model.safetensors'), join(dir, 'model.safetensors'), table, vocab);
  return dir;
}

/** Writes the golden BERT without a head. */
export const tinyBert = (dir: string): string => writeBert(dir, 'bert', 'embeddings.word_embeddings.weight');

/** Writes the golden BERT with a head of three classes. */
export const tinyClassifier = (dir: string): string =>
  writeBert(dir, 'bert-seqcls', 'bert.embeddings.word_embeddings.weight');

/** Writes the golden ViT (images of 16 × 16, four classes) with its image preprocessor. */
export function tinyVit(dir: string): string {
  mkdirSync(dir, { recursive: true });
  for (const name of ['config.json', 'model.safetensors'])
    copyFileSync(golden('families', 'vit', name), join(dir, name));
  const preprocessor = 'preprocessor_config.json';
  copyFileSync(golden('images', 'vit-bilinear', preprocessor), join(dir, preprocessor));
  return dir;
}

/**
 * Writes the golden llama3 (three blocks, width 32) into `dir`, its embedding table enlarged to the 600 tokens of the golden
 * tokenizer, or to `minRows`. Returns `dir`.
 */
export function tinyModel(dir: string, minRows = 0): string {
  mkdirSync(dir, { recursive: true });
  const tokenizer = JSON.parse(readFileSync(golden('tokenizer', 'llama3.json'), 'utf8')) as {
    added_tokens: { id: number; content: string }[];
  };
  const idOf = (content: string) => tokenizer.added_tokens.find((token) => token.content === content)!.id;
  const vocab = Math.max(minRows, ...tokenizer.added_tokens.map(({ id }) => id + 1));
  const config = JSON.parse(readFileSync(golden('models', 'llama3', 'config.json'), 'utf8'));
  const special = { bos_token: '<|begin_of_text|>', eos_token: '<|eot_id|>' };
  const ids = { bos_token_id: idOf(special.bos_token), eos_token_id: idOf(special.eos_token) };
  writeFileSync(join(dir, 'config.json'), JSON.stringify({ ...config, ...ids, vocab_size: vocab }));
  writeFileSync(join(dir, 'tokenizer_config.json'), JSON.stringify(special));
  writeFileSync(join(dir, 'chat_template.jinja'), template);
  copyFileSync(golden('tokenizer', 'llama3.json'), join(dir, 'tokenizer.json'));

  const weights = golden('models', 'llama3', 'model.safetensors');
  copyEnlarged(weights, join(dir, 'model.safetensors'), 'model.embed_tokens.weight', vocab);
  return dir;
}
