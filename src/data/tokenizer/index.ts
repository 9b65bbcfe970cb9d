export { tokenizerFromGguf } from './from-gguf.ts';
export { loadTokenizer } from './load.ts';
export { requireTokenizer, tokenizerFilesOf, tokenizerIfAny, tokenizerOf } from './of-model.ts';
export type { TokenizerSettings } from './settings.ts';
export { TextStream } from './text-stream.ts';
export type { GgufTokenizer } from './to-gguf.ts';
export { Tokenizer } from './tokenizer.ts';
