import { GraftError } from '../base/index.ts';
import type { Tokenizer } from '../data/index.ts';
import type { Model } from '../nn/index.ts';
import { type GenerateOptions, type GenerateSummary, generate } from './tokens.ts';

export interface TextOptions extends GenerateOptions {
  /** The answer ends before the first of these. */
  readonly stop?: readonly string[] | undefined;
}

export interface TextResult {
  readonly text: string;
  /** The tokens that were generated; after a stop string also those that it is made of. */
  readonly ids: number[];
  readonly reason: GenerateSummary['reason'];
  readonly promptTokens: number;
  readonly prefillTokensPerSecond: number;
  /** Of the tokens after the first, which comes out of the prefill; 0 when there is none. */
  readonly decodeTokensPerSecond: number;
}

/**
 * Generates text; `onText` gets it as it becomes certain: whole characters, nothing that a stop string could begin in.
 * Ends at the tokenizer's end-of-text tokens unless `eosIds` says otherwise.
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
  let shown = 0;
  let reason: GenerateSummary['reason'] | undefined;
  const seconds: number[] = [];
  while (reason === undefined) {
    const began = performance.now();
    const step = steps.next();
    if (!step.done || step.value.reason === 'eos') seconds.push((performance.now() - began) / 1e3);
    if (step.done) {
      reason = step.value.reason;
      text += decoder.end();
    } else {
      ids.push(step.value);
      text += decoder.push(step.value);
    }
    // What has been shown holds no beginning of a stop string, so none can begin there.
    const found = stops.map((stop) => text.indexOf(stop, shown)).filter((at) => at >= 0);
    if (found.length > 0) {
      text = text.slice(0, Math.min(...found));
      reason = 'stop';
    }
    const certain = reason === undefined ? text.length - held(text, stops) : text.length;
    if (certain > shown) onText(text.slice(shown, certain));
    shown = certain;
  }
  const [prefill, ...decode] = seconds;
  return {
    text,
    ids,
    reason,
    promptTokens: promptIds.length,
    prefillTokensPerSecond: promptIds.length / prefill!,
    decodeTokensPerSecond: decode.length && decode.length / decode.reduce((a, b) => a + b),
  };
}

/** How many characters at the end of `text` could be the beginning of a stop string. */
function held(text: string, stops: readonly string[]): number {
  let most = 0;
  for (const stop of stops) {
    for (let n = Math.min(stop.length - 1, text.length); n > most; n--) if (text.endsWith(stop.slice(0, n))) most = n;
  }
  return most;
}
