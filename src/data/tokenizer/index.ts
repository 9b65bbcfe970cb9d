export { tokenizerFromGguf } from './from-gguf.ts';
export { loadTokenizer } from './load.ts';
export { TextStream } from './text-stream.ts';
export { Tokenizer, type TokenizerSettings } from './tokenizer.ts';
