import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../../base/index.ts';
import { openGguf } from '../../io/index.ts';
import { tokenizerFromGguf } from './from-gguf.ts';
import { loadTokenizer } from './load.ts';
import type { Tokenizer } from './tokenizer.ts';

/**
 * The tokenizer of a model.
 * @param model a Hugging Face directory with tokenizer files, or a GGUF file
 * @throws GraftError `usage` where the path does not exist, `input` for a tokenizer that is missing or damaged
 */
export function tokenizerOf(model: string): Tokenizer {
  if (!existsSync(model)) {
    throw new GraftError('usage', 'the model was not found', { place: model, hint: 'Check the path' });
  }
  if (statSync(model).isDirectory()) return loadTokenizer(model);
  using source = openGguf(model);
  return tokenizerFromGguf(source.metadata, model);
}

/** The tokenizer of a model, or undefined for a directory without tokenizer files: rows of ids and of images need none. */
export function tokenizerIfAny(model: string): Tokenizer | undefined {
  const names = ['tokenizer.json', 'vocab.txt', 'vocab.json', 'tokenizer.model'];
  const has = !statSync(model).isDirectory() || names.some((name) => existsSync(join(model, name)));
  return has ? tokenizerOf(model) : undefined;
}

/**
 * The tokenizer files, text by name, that a directory made from `model` needs and that cannot be copied because they exist
 * only inside a GGUF file. Empty for a model that is a directory.
 */
export function tokenizerFilesOf(model: string): Record<string, string> {
  return statSync(model).isDirectory() ? {} : tokenizerOf(model).files();
}

/**
 * Returns `tokenizer`, or throws where the model has none.
 * @throws GraftError `usage` for rows of text without a tokenizer
 */
export function requireTokenizer(tokenizer: Tokenizer | undefined, place: string): Tokenizer {
  if (tokenizer) return tokenizer;
  throw new GraftError('usage', 'the model has no tokenizer, and the rows are text', {
    place,
    hint: 'Give rows of token ids',
  });
}
