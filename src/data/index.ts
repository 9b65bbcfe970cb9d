export { BadRows, mapRows } from './bad-rows.ts';
export {
  answerIds,
  ChatTemplate,
  makePrompt,
  type Prompt,
  type PromptOptions,
  type PromptSource,
  promptSourceOf,
  type RenderOptions,
} from './chat/index.ts';
export { messageSchema, toMessages } from './chat-rows.ts';
export { type Answer, type Example, type Label, type Message, unusedNotes, withTaskNumber } from './example.ts';
export { type Format, formatNames } from './formats.ts';
export {
  decodeImage,
  type Image,
  type ImageProcessor,
  imageProcessorOf,
  imageRecords,
  readImage,
} from './images/index.ts';
export { microBatches, type Packed, pack, tokensOfRow } from './packing.ts';
export { type ReadOptions, readRecords } from './readers/index.ts';
export type { RawRecord } from './record.ts';
export {
  collectRows,
  nameOfSource,
  pathsOf,
  type RowInput,
  type RowSource,
  type RowStream,
  recordsOf,
  withPaths,
} from './row-source.ts';
export { checkedIds, checkedLabels, type Row, type RowOptions, type RowReport, toRows } from './rows.ts';
export { randomStream, rowsOfStep, shuffled, split } from './sampler.ts';
export { toExample, toStep } from './to-example.ts';
export {
  type GgufTokenizer,
  loadTokenizer,
  requireTokenizer,
  TextStream,
  Tokenizer,
  type TokenizerSettings,
  tokenizerFilesOf,
  tokenizerFromGguf,
  tokenizerIfAny,
  tokenizerOf,
} from './tokenizer/index.ts';
