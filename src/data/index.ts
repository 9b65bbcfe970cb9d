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
export { exactJson } from './exact-json.ts';
export { type Answer, type Example, type Label, type Message, withTaskNumber } from './example.ts';
export { columnNames, type Format, formatNames } from './formats.ts';
export {
  decodeImage,
  type Image,
  type ImageProcessor,
  imageProcessorOf,
  imageRecords,
  readImage,
} from './images/index.ts';
export { microBatches, type Packed, pack, tokensOfRow } from './packing.ts';
export { localPaths, type ReadOptions, readRecords } from './readers/index.ts';
export type { RawRecord } from './record.ts';
export { ReportBuilder, type RowPlaces, type RowReport, rowNotes } from './row-report.ts';
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
export { checkedIds, checkedLabels, isBlank, isEmpty, type Row, type RowOptions, toRows } from './rows.ts';
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
export { keptTokens, type Truncation, truncations } from './truncate.ts';
