import * as library from '@huggingface/tokenizers';
import { GraftError } from '../../base/index.ts';

// The package exports this class; its type declarations lose it (they name files without an ending).
const { SplitPreTokenizer } = library as unknown as {
  SplitPreTokenizer: new (config: JsonObject) => { readonly pattern: RegExp | null };
};

/** A JSON object, most often a component of tokenizer.json: `type` names it, the other fields are its settings. */
export type JsonObject = Readonly<Record<string, unknown>>;

/** Maps text to normalised text, before it is split into pieces. */
export type Normalizer = (text: string) => string;

/** The error for a tokenizer file with invalid contents. */
export const tokenizerError = (place: string, problem: string, cause?: unknown): GraftError =>
  new GraftError('input', problem, { place, hint: 'Use the tokenizer.json that was published with the model', cause });

/**
 * A `pattern` of tokenizer.json as a global JavaScript regular expression. The file uses Oniguruma's dialect;
 * @huggingface/tokenizers translates it (`\s`, `\w`, `\A`, `(?i:)`, `[[:alpha:]]`, class intersection, possessive
 * quantifiers …).
 * @throws GraftError `input` for an expression that has no JavaScript equivalent
 */
export function toRegExp(pattern: unknown, place: string): RegExp {
  const { String: text, Regex: regex } = (pattern ?? {}) as JsonObject;
  if (typeof text === 'string') return new RegExp(RegExp.escape(text), 'gu');
  if (typeof regex !== 'string') throw tokenizerError(place, 'A pattern needs a String or a Regex');
  try {
    const { pattern: translated } = new SplitPreTokenizer({
      type: 'Split',
      pattern: { Regex: regex },
      behavior: 'Isolated',
      invert: false,
    });
    if (translated) return translated;
  } catch (error) {
    throw tokenizerError(place, `The regular expression ${regex} is not supported: ${(error as Error).message}`, error);
  }
  throw tokenizerError(place, `The regular expression ${regex} is not supported`);
}

export const splitBehaviors = ['Removed', 'Isolated', 'MergedWithPrevious', 'MergedWithNext', 'Contiguous'] as const;
/** What happens to the matches of a pattern at which text is split; tokenizers' `SplitDelimiterBehavior`. */
export type SplitBehavior = (typeof splitBehaviors)[number];

/** `text` split at the matches of `pattern`; with `invert`, at the text between them. Empty pieces are left out. */
export function splitText(text: string, pattern: RegExp, behavior: SplitBehavior, invert = false): string[] {
  const pieces: string[] = [];
  const isDelimiter: boolean[] = [];
  let last = 0;
  const add = (end: number, isMatch: boolean) => {
    if (end > last) {
      pieces.push(text.slice(last, end));
      isDelimiter.push(isMatch !== invert);
    }
    last = end;
  };
  pattern.lastIndex = 0;
  for (let m = pattern.exec(text); m; m = pattern.exec(text)) {
    add(m.index, false);
    add(m.index + m[0].length, true);
    if (m[0] === '') pattern.lastIndex += text.codePointAt(pattern.lastIndex)! > 0xffff ? 2 : 1;
  }
  add(text.length, false);
  if (behavior === 'Isolated') return pieces;
  if (behavior === 'Removed') return pieces.filter((_, i) => !isDelimiter[i]);
  const merged: string[] = [];
  const n = pieces.length;
  for (let i = 0; i < n; ) {
    let end = i + 1;
    if (behavior === 'Contiguous') while (end < n && isDelimiter[end] === isDelimiter[i]) end++;
    else if (behavior === 'MergedWithPrevious') end += !isDelimiter[i] && isDelimiter[end] ? 1 : 0;
    else end += isDelimiter[i] && end < n && !isDelimiter[end] ? 1 : 0;
    merged.push(pieces.slice(i, end).join(''));
    i = end;
  }
  return merged;
}

/** GPT-2's printable character for each byte. Source: `bytes_to_unicode` of openai/gpt-2 `encoder.py`. */
const byteChars: readonly string[] = (() => {
  const printable = (b: number) => (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
  let next = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCharCode(printable(b) ? b : next++));
})();
const charBytes: ReadonlyMap<string, number> = new Map(byteChars.map((c, b) => [c, b]));

/** The UTF-8 bytes of `text`, each as GPT-2's printable character for it. */
export function toByteChars(text: string): string {
  let out = '';
  for (const byte of Buffer.from(text, 'utf8')) out += byteChars[byte];
  return out;
}

/** The bytes that a byte-level token stands for; for a token with any other character, its UTF-8 bytes. */
export function fromByteChars(token: string): number[] {
  const bytes: number[] = [];
  for (const c of token) {
    const byte = charBytes.get(c);
    if (byte === undefined) return [...Buffer.from(token, 'utf8')];
    bytes.push(byte);
  }
  return bytes;
}

const utf8 = new TextDecoder('utf-8', { ignoreBOM: true });
/** The text of UTF-8 bytes; invalid bytes become U+FFFD. */
export const decodeUtf8 = (bytes: readonly number[]): string => utf8.decode(Uint8Array.from(bytes));
