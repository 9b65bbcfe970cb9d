import type { Tokenizer } from '../data/index.ts';
import type { Model } from '../nn/index.ts';
import { LoneBatch } from './lone.ts';
import type { EndReason, GenerationEnd } from './request.ts';
import type { GenerateOptions } from './tokens.ts';

/** Options of `generateText`. */
export interface TextOptions extends GenerateOptions {
  /** Stop strings, which may be or contain special tokens: the text ends before the first of them. */
  readonly stop?: readonly string[] | undefined;
  /** Is asked before each token; the answer ends, as 'interrupted', when it says true. */
  readonly stopRequested?: (() => boolean) | undefined;
}

/** What `generateText` returns. */
export interface TextResult {
  /** The generated text, without a stop string. */
  readonly text: string;
  /** The generated tokens, those of a stop string included. */
  readonly ids: readonly number[];
  /** Why it ended. */
  readonly reason: Exclude<EndReason, 'deadline'>;
  /** Tokens of the prompt. */
  readonly promptTokens: number;
  /** Rate at which the prompt was read. */
  readonly prefillTokensPerSecond: number;
  /** Rate of the tokens after the first, which the prefill gives; 0 when there is none. */
  readonly decodeTokensPerSecond: number;
}

/**
 * Generates text. `onText` receives it in pieces, as soon as they are final: complete characters that cannot be part of a stop
 * string. Ends at the tokenizer's end-of-text tokens unless `eosIds` are given.
 * @throws GraftError 'usage' for an empty stop string, and where `generate` throws it
 */
export function generateText(
  model: Model,
  tokenizer: Tokenizer,
  promptIds: ArrayLike<number>,
  { stopRequested, ...options }: TextOptions,
  onText: (text: string) => void = () => {},
): TextResult {
  let end: GenerationEnd | undefined;
  let failure: unknown;
  const listener = {
    delta({ text }: { readonly text: string }) {
      if (text !== '') onText(text);
    },
    end(all: GenerationEnd) {
      end = all;
    },
    fail(error: unknown) {
      failure = error;
    },
  };
  using batch = new LoneBatch(model, Array.from(promptIds), options, listener, tokenizer);
  while (!end) {
    if (stopRequested?.()) batch.cancel();
    batch.step();
    if (failure !== undefined) throw failure;
  }
  const { text, ids, reason, promptTokens, timings } = end as GenerationEnd;
  const { firstToken, total } = timings;
  const decoded = ids.length + (reason === 'eos' ? 1 : 0) - 1;
  return {
    text,
    ids,
    reason: reason as TextResult['reason'],
    promptTokens,
    prefillTokensPerSecond: firstToken === 0 ? 0 : promptTokens / (firstToken / 1e3),
    decodeTokensPerSecond: decoded > 0 && total > firstToken ? decoded / ((total - firstToken) / 1e3) : 0,
  };
}
