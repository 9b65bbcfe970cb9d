import { GraftError } from '../base/index.ts';
import type { Tokenizer } from '../data/index.ts';
import type { Model } from '../nn/index.ts';
import { type GenerateOptions, type GenerateSummary, generate } from './tokens.ts';

/** Options of `generateText`. */
export interface TextOptions extends GenerateOptions {
  /** Stop strings: the text ends before the first of them. */
  readonly stop?: readonly string[] | undefined;
  /** Is asked before each token; the answer ends, as 'interrupted', when it says true. */
  readonly stopRequested?: (() => boolean) | undefined;
}

/** What `generateText` returns. */
export interface TextResult {
  /** The generated text, without a stop string. */
  readonly text: string;
  /** The generated tokens, those of a stop string included. */
  readonly ids: number[];
  /** Why it ended. */
  readonly reason: GenerateSummary['reason'] | 'interrupted';
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
  options: TextOptions,
  onText: (text: string) => void = () => {},
): TextResult {
  const stops = options.stop ?? [];
  if (stops.includes('')) throw new GraftError('usage', 'a stop string cannot be empty', { place: 'stop' });
  using steps = generate(model, promptIds, { ...options, eosIds: options.eosIds ?? tokenizer.eosIds });
  const decoder = tokenizer.stream({ skipSpecialTokens: true });
  const ids: number[] = [];
  let text = '';
  let emitted = 0;
  let reason: TextResult['reason'] | undefined;
  const seconds: number[] = [];
  while (reason === undefined) {
    if (options.stopRequested?.()) {
      reason = 'interrupted';
      break;
    }
    const start = performance.now();
    const step = steps.next();
    if (!step.done || step.value.reason === 'eos') seconds.push((performance.now() - start) / 1e3);
    if (step.done) {
      reason = step.value.reason;
      text += decoder.end();
    } else {
      ids.push(step.value);
      text += decoder.push(step.value);
    }
    // What has been emitted contains no beginning of a stop string.
    const stopPositions = stops.map((stop) => text.indexOf(stop, emitted)).filter((at) => at >= 0);
    if (stopPositions.length > 0) {
      text = text.slice(0, Math.min(...stopPositions));
      reason = 'stop';
    }
    const final = reason === undefined ? text.length - stopPrefixLength(text, stops) : text.length;
    if (final > emitted) onText(text.slice(emitted, final));
    emitted = final;
  }
  const [prefill, ...decode] = seconds;
  return {
    text,
    ids,
    reason,
    promptTokens: promptIds.length,
    prefillTokensPerSecond: prefill === undefined ? 0 : promptIds.length / prefill,
    decodeTokensPerSecond: decode.length && decode.length / decode.reduce((a, b) => a + b),
  };
}

/** The length of the longest end of `text` that is the beginning of a stop string. */
function stopPrefixLength(text: string, stops: readonly string[]): number {
  let longest = 0;
  for (const stop of stops) {
    const first = Math.min(stop.length - 1, text.length);
    for (let n = first; n > longest; n--) if (text.endsWith(stop.slice(0, n))) longest = n;
  }
  return longest;
}
