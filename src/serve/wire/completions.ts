import { z } from 'zod';
import { type NeutralFields, remarks } from './body.ts';
import { samplingFields } from './sampling.ts';

const ids = z.array(z.int().nonnegative()).min(1);

/** A text, token ids, or a list of either. */
export const inputSchema = z.union([z.string(), z.array(z.string()).min(1), ids, z.array(ids).min(1)], {
  error: 'expected a text, token ids, or a list of either',
});
export type Input = z.infer<typeof inputSchema>;

/** The texts or token ids of an input, one for each prompt. */
export const promptsOf = (input: Input): (string | number[])[] => {
  if (typeof input === 'string') return [input];
  return typeof input[0] === 'number' ? [input as number[]] : (input as (string | number[])[]);
};

export const completionSchema = z.strictObject({
  ...samplingFields,
  prompt: inputSchema,
  logprobs: z.int().min(0).max(20).optional(),
});

export type CompletionFields = z.infer<typeof completionSchema>;

export const neutralCompletionFields: NeutralFields = {
  ...remarks,
  echo: [false],
  suffix: [''],
  best_of: [1],
};
