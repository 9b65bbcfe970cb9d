export { Grammars, vocabularyTokens } from './grammar.ts';
export { type SamplingOptions, sample } from './sampling.ts';
export { scoreChoices } from './score.ts';
export { generateText, type TextOptions, type TextResult } from './text.ts';
export { type GenerateOptions, type GenerateSummary, generate, requireLanguageModel } from './tokens.ts';
export { type GrammarMatcher, type VocabularyTokens, XGrammar } from './xgrammar.ts';
