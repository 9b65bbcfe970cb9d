import { GraftError } from '../base/index.ts';
import type { Tokenizer } from '../data/index.ts';
import type { Model } from '../nn/index.ts';
import { type GenerateOptions, type GenerateSummary, generate } from './tokens.ts';

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
  const marked = stops.map((stop) => markSpecialTokens(stop.toWellFormed(), tokenizer));
  // The characters of a special token may also come as ordinary text.
  const searched = [...new Set([...marked, ...stops])];
  // An end token that is a stop string is found as one.
  const eosIds = (options.eosIds ?? tokenizer.eosIds).filter((id) => !marked.includes(mark(id)));
  using steps = generate(model, promptIds, { ...options, eosIds });
  const decoder = tokenizer.stream({ skipSpecialTokens: true });
  const ids: number[] = [];
  /** The text, with a mark for each special token. */
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
      text += tokenizer.isSpecial(step.value) ? mark(step.value) : decoder.push(step.value);
    }
    // What has been emitted contains no beginning of a stop string.
    const stopPositions = searched.map((stop) => text.indexOf(stop, emitted)).filter((at) => at >= 0);
    if (stopPositions.length > 0) {
      text = text.slice(0, Math.min(...stopPositions));
      reason = 'stop';
    }
    const final = reason === undefined ? text.length - stopPrefixLength(text, searched) : text.length;
    const piece = withoutMarks(text.slice(emitted, final));
    if (piece !== '') onText(piece);
    emitted = final;
  }
  const [prefill, ...decode] = seconds;
  return {
    text: withoutMarks(text),
    ids,
    reason,
    promptTokens: promptIds.length,
    prefillTokensPerSecond: prefill === undefined ? 0 : promptIds.length / prefill,
    decodeTokensPerSecond: decode.length && decode.length / decode.reduce((a, b) => a + b),
  };
}

/**
 * The mark of a special token in a text that stop strings are searched for in. Marks are lone surrogates, which no decoded text
 * has, and a part of one is never a mark: the first unit is below U+DE00, the others are above it.
 */
const mark = (id: number): string =>
  String.fromCharCode(0xdc00 + (id >> 18), 0xde00 + ((id >> 9) & 0x1ff), 0xde00 + (id & 0x1ff));

const withoutMarks = (text: string): string => text.replace(/[\uDC00-\uDFFF]/gu, '');

/** A stop string with marks instead of the special tokens that are written in it. */
function markSpecialTokens(stop: string, tokenizer: Tokenizer): string {
  return tokenizer
    .splitAtSpecialTokens(stop)
    .reduce<string>((text, part) => text + (typeof part === 'string' ? part : mark(part)), '');
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
