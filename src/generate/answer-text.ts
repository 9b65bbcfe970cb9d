import { GraftError } from '../base/index.ts';
import type { Tokenizer } from '../data/index.ts';

/** The stop strings of a request, as a text with marks for special tokens is searched for them. */
interface Stops {
  /** Each with the string of the request that it comes from. */
  readonly searched: ReadonlyMap<string, string>;
  readonly marked: readonly string[];
}

/** What a token added to a text. */
export interface TextStep {
  /** Text that is final: complete characters that cannot be part of a stop string. */
  readonly piece: string;
  /** The stop string that ended the text. */
  readonly stop?: string;
}

/**
 * The text of one answer, token by token. A text ends before the first of its stop strings, which may be or contain special tokens.
 */
export class AnswerText {
  readonly #tokenizer: Tokenizer;
  readonly #stops: Stops;
  readonly #decoder;
  /** The text, with a mark for each special token. */
  #text = '';
  #emitted = 0;

  /** @throws GraftError 'usage' for an empty stop string */
  constructor(tokenizer: Tokenizer, stops: readonly string[] = []) {
    if (stops.includes('')) throw new GraftError('usage', 'a stop string cannot be empty', { place: 'stop' });
    this.#tokenizer = tokenizer;
    const marked = stops.map((stop) => markSpecialTokens(stop.toWellFormed(), tokenizer));
    // The characters of a special token may also come as ordinary text.
    const searched = new Map([
      ...stops.map((stop, i) => [marked[i]!, stop] as const),
      ...stops.map((s) => [s, s] as const),
    ]);
    this.#stops = { searched, marked };
    this.#decoder = tokenizer.stream({ skipSpecialTokens: true });
  }

  /** Those of the end tokens that are no stop strings: an end token that is one is found as one. */
  endTokens(eosIds: readonly number[]): number[] {
    return eosIds.filter((id) => !this.#stops.marked.includes(mark(id)));
  }

  push(id: number): TextStep {
    this.#text += this.#tokenizer.isSpecial(id) ? mark(id) : this.#decoder.push(id);
    return this.#advance(false);
  }

  /** Ends the text: what was held back is final now. */
  end(): TextStep {
    this.#text += this.#decoder.end();
    return this.#advance(true);
  }

  /** The text so far, without a stop string. */
  get text(): string {
    return withoutMarks(this.#text);
  }

  #advance(isLast: boolean): TextStep {
    const { searched } = this.#stops;
    // What has been emitted contains no beginning of a stop string.
    let [at, stop]: [number, string | undefined] = [this.#text.length, undefined];
    for (const [search, original] of searched) {
      const found = this.#text.indexOf(search, this.#emitted);
      if (found >= 0 && found < at) [at, stop] = [found, original];
    }
    this.#text = this.#text.slice(0, at);
    const isFinal = isLast || stop !== undefined;
    const final = isFinal ? at : at - stopPrefixLength(this.#text, [...searched.keys()]);
    const piece = withoutMarks(this.#text.slice(this.#emitted, final));
    this.#emitted = final;
    return { piece, ...(stop !== undefined && { stop }) };
  }
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
