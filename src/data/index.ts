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
export {
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
