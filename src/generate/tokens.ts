import type { Model } from '../nn/index.ts';
import { LoneBatch } from './lone.ts';
import type { GenerationEnd } from './request.ts';
import type { SamplingOptions } from './sampling.ts';

/** Options of `generate`. */
export interface GenerateOptions extends SamplingOptions {
  /** Tokens to generate at most. */
  readonly maxNewTokens: number;
  /** Ids that end generation; they are not part of the answer. */
  readonly eosIds?: readonly number[] | undefined;
  /** The task of the prompt, among several that share an adapter. */
  readonly taskNumber?: number | undefined;
  /** Seed of sampling: the same seed gives the same answer. Default 0. */
  readonly seed?: number | undefined;
  /** Chunk size of the prefill, in tokens: large enough for matmuls at full rate, small enough to bound memory. Default 512. */
  readonly prefillTokens?: number | undefined;
}

/** What `generate` returns at its end. */
export interface GenerateSummary {
  /** Why it ended: at an end token, or at `maxNewTokens` or the end of the context. */
  readonly reason: 'eos' | 'length';
  /** Tokens of the prompt. */
  readonly promptTokens: number;
  /** Tokens that were generated. */
  readonly newTokens: number;
  /** Time until the first token was sampled. */
  readonly prefillSeconds: number;
  /** Time for all tokens after the first, without the consumer's time between them. */
  readonly decodeSeconds: number;
}

/**
 * Generates tokens after `promptIds`. Yields the ids one by one, each computed when the consumer asks for it, and returns a
 * summary; its reason is 'length' at `maxNewTokens` or where the model's context is full.
 * @throws GraftError 'usage' for options out of range, a model that is not a language model, and a prompt that is empty,
 *   has ids outside the vocabulary or fills the context
 */
export function* generate(
  model: Model,
  promptIds: ArrayLike<number>,
  options: GenerateOptions,
): Generator<number, GenerateSummary> {
  const produced: number[] = [];
  let end: GenerationEnd | undefined;
  let failure: unknown;
  const listener = {
    delta: ({ ids }: { readonly ids: readonly number[] }) => produced.push(...ids),
    end: (all: GenerationEnd) => {
      end = all;
    },
    fail: (error: unknown) => {
      failure = error;
    },
  };
  using batch = new LoneBatch(model, Array.from(promptIds), options, listener);
  let [prefillSeconds, decodeSeconds] = [0, 0];
  for (let sampled = 0; !end; ) {
    const start = performance.now();
    batch.step();
    const seconds = (performance.now() - start) / 1e3;
    if (failure !== undefined) throw failure;
    if (sampled === 0) prefillSeconds += seconds;
    else decodeSeconds += seconds;
    for (; sampled < produced.length; sampled++) yield produced[sampled]!;
  }
  const reason = end.reason === 'eos' ? 'eos' : 'length';
  return { reason, promptTokens: end.promptTokens, newTokens: end.newTokens, prefillSeconds, decodeSeconds };
}
