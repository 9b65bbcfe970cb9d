export { type AnswerListener, nameOf } from './answer.ts';
export { Batcher, type BatcherOptions } from './batcher.ts';
export { Grammars, vocabularyTokens } from './grammar.ts';
export { GrammarThreads } from './grammar-threads.ts';
export { checkRequest, requireLanguageModel } from './lone.ts';
export {
  type AdapterOfRequest,
  bankKey,
  type EndReason,
  type GenerationDelta,
  type GenerationEnd,
  type GenerationRequest,
  noRoom,
  type TokenFilter,
  type TokenLogprob,
  type WeightedAdapter,
} from './request.ts';
export { type SamplingOptions, sample } from './sampling.ts';
export { scoreChoices } from './score.ts';
export { generateText, type TextOptions, type TextResult } from './text.ts';
export { type GenerateOptions, type GenerateSummary, generate } from './tokens.ts';
export { type VocabularyTokens, XGrammar } from './xgrammar.ts';
