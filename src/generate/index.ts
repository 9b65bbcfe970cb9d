export { type GenerateOptions, type GenerateSummary, generate, generateText, type TextOptions, type TextResult } from './generate.ts';
export { type SamplingOptions, sample } from './sampling.ts';
export { scoreChoices } from './score.ts';
