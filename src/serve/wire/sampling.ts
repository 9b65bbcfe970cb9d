/** Fields that chat and plain completions share. */
import { randomInt } from 'node:crypto';
import { z } from 'zod';
import { badRequest } from '../errors.ts';
import type { Limits } from '../limits.ts';

const range = (min: number, max: number) => z.number().min(min).max(max);

export const samplingFields = {
  model: z.string().max(512),
  /** LoRA adapters whose weighted sum the base is used with. */
  adapters: z
    .array(z.strictObject({ name: z.string().min(1).max(256), weight: range(-16, 16) }))
    .min(1)
    .max(16)
    .optional(),
  temperature: range(0, 2).default(1),
  top_p: z.number().gt(0).max(1).optional(),
  top_k: z.int().min(-1).optional(),
  min_p: range(0, 1).optional(),
  repetition_penalty: z.number().gt(0).max(10).optional(),
  presence_penalty: range(-2, 2).optional(),
  frequency_penalty: range(-2, 2).optional(),
  logit_bias: z.record(z.string(), range(-100, 100)).optional(),
  seed: z.int().optional(),
  stop: z.union([z.string(), z.array(z.string())]).optional(),
  n: z.int().min(1).default(1),
  stream: z.boolean().default(false),
  stream_options: z
    .strictObject({ include_usage: z.boolean().nullish(), include_obfuscation: z.literal(false).nullish() })
    .optional(),
  max_tokens: z.int().min(1).optional(),
};

const samplingSchema = z.strictObject(samplingFields);
export type SamplingFields = z.infer<typeof samplingSchema>;

/** How tokens are chosen, for one of several answers. */
export interface Sampling {
  readonly temperature: number;
  readonly topK: number | undefined;
  readonly topP: number | undefined;
  readonly minP: number | undefined;
  readonly repetitionPenalty: number | undefined;
  readonly presencePenalty: number | undefined;
  readonly frequencyPenalty: number | undefined;
  readonly logitBias: Readonly<Record<number, number>> | undefined;
  readonly stop: readonly string[];
  /** Of the first answer; each further one has the next. */
  readonly seed: number;
}

/** @throws RequestError 400 for what is above a limit, or names no token */
export function samplingOf(fields: SamplingFields, limits: Limits, vocabSize: number): Sampling {
  const stop = fields.stop === undefined ? [] : [fields.stop].flat();
  if (stop.length > limits.stops)
    throw badRequest(`There are more than ${limits.stops} stop strings.`, 'stop', 'too_many');
  if (stop.some((text) => text === '' || text.length > limits.stopLength)) {
    throw badRequest(`A stop string must have 1 to ${limits.stopLength} characters.`, 'stop', 'invalid');
  }
  if (fields.stream_options && !fields.stream)
    throw badRequest("'stream_options' are for answers with 'stream': true.", 'stream_options', 'invalid');
  const { top_k: topK } = fields;
  return {
    temperature: fields.temperature,
    topK: topK !== undefined && topK > 0 ? topK : undefined, // 0 and -1: of all tokens
    topP: fields.top_p,
    minP: fields.min_p,
    repetitionPenalty: fields.repetition_penalty,
    presencePenalty: fields.presence_penalty,
    frequencyPenalty: fields.frequency_penalty,
    logitBias: fields.logit_bias && biasesOf(fields.logit_bias, limits, vocabSize),
    stop,
    seed: fields.seed ?? randomInt(2 ** 47),
  };
}

function biasesOf(
  biases: Readonly<Record<string, number>>,
  limits: Limits,
  vocabSize: number,
): Readonly<Record<number, number>> {
  const entries = Object.entries(biases);
  if (entries.length > limits.logitBiases)
    throw badRequest(`There are more than ${limits.logitBiases} biases.`, 'logit_bias', 'too_many');
  for (const [key] of entries) {
    if (!/^\d+$/.test(key) || Number(key) >= vocabSize)
      throw badRequest(`A key of 'logit_bias' is not a token id below ${vocabSize}.`, 'logit_bias', 'invalid');
  }
  return biases;
}

/** Asserts that the answers of a request are not too many. */
export function checkAnswers(prompts: number, n: number, limits: Limits): void {
  if (prompts * n > limits.answers)
    throw badRequest(`The request asks for ${prompts * n} answers; ${limits.answers} are the most.`, 'n', 'too_many');
}
