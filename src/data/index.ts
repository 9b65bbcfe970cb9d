import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import { openGguf } from '../io/index.ts';
import { loadTokenizer, type Tokenizer, tokenizerFromGguf } from './tokenizer/index.ts';

export { ChatTemplate, type RenderOptions } from './chat/index.ts';
export {
  type Answer,
  type Example,
  type Format,
  formatNames,
  type Label,
  type Message,
  toExample,
  toStep,
  withTaskNumber,
} from './formats.ts';
export {
  decodeImage,
  type Image,
  type ImageProcessor,
  imageProcessorOf,
  imageRecords,
  readImage,
} from './images/index.ts';
export { microBatches, type Packed, pack } from './packing.ts';
export { readRecords } from './readers.ts';
export type { RawRecord } from './record.ts';
export { checkedIds, checkedLabels, type Row, type RowOptions, type RowReport, toRows } from './rows.ts';
export { randomStream, rowsOfStep, shuffled, split } from './sampler.ts';
export { loadTokenizer, TextStream, Tokenizer, type TokenizerSettings, tokenizerFromGguf } from './tokenizer/index.ts';

/** The tokenizer of a model: of its directory, or inside its GGUF file. */
export function tokenizerOf(model: string): Tokenizer {
  if (!existsSync(model)) throw new GraftError('usage', 'there is no such model', { place: model });
  if (statSync(model).isDirectory()) return loadTokenizer(model);
  using source = openGguf(model);
  return tokenizerFromGguf(source.metadata, model);
}

/** The tokenizer of a model that has one: rows of ids and images need none. */
export function tokenizerIfAny(model: string): Tokenizer | undefined {
  const names = ['tokenizer.json', 'vocab.txt', 'vocab.json', 'tokenizer.model'];
  const has = !statSync(model).isDirectory() || names.some((name) => existsSync(join(model, name)));
  return has ? tokenizerOf(model) : undefined;
}

/** The tokenizer files that a directory made from `model` needs and that are no files yet: those inside a GGUF. */
export function tokenizerFilesOf(model: string): Record<string, string> {
  return statSync(model).isDirectory() ? {} : tokenizerOf(model).files();
}
