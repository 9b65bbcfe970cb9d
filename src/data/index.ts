import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import { openGguf } from '../io/index.ts';
import type { Tokenizer } from './tokenizer.ts';
import { tokenizerFromGguf } from './tokenizer-gguf.ts';
import { loadTokenizer } from './tokenizer-load.ts';

export { ChatTemplate, type RenderOptions } from './chat.ts';
export {
  type Answer,
  type Example,
  type Format,
  formatNames,
  type Label,
  type Message,
  ofTask,
  toExample,
  toStep,
} from './formats.ts';
export { decodeImage, type ImageProcessor, imageProcessorOf, imageRecords, readImage } from './images.ts';
export { microBatches, type Packed, pack } from './packing.ts';
export { type RawRecord, readRecords } from './readers.ts';
export type { Image } from './resample.ts';
export { checkedIds, checkedLabels, type Row, type RowOptions, type RowReport, toRows } from './rows.ts';
export { rowsOfStep, shuffled, split, stream } from './sampler.ts';
export { Tokenizer, type TokenizerSettings } from './tokenizer.ts';
export { tokenizerFromGguf } from './tokenizer-gguf.ts';
export { loadTokenizer } from './tokenizer-load.ts';
export { TextStream } from './tokenizer-stream.ts';

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
