import * as library from '@huggingface/tokenizers';
import { GraftError } from '../../base/index.ts';

// The package exports this class; its type declarations lose it (they name files without an ending).
const { SplitPreTokenizer } = library as unknown as {
  SplitPreTokenizer: new (config: Part) => { readonly pattern: RegExp | null };
};

/** A part of `tokenizer.json`: `type` names the component, the rest is its settings. */
export type Part = Readonly<Record<string, unknown>>;

/** Text to text, before it is cut into words. */
export type Normalizer = (text: string) => string;

/** The error for something in a tokenizer file that is not as it must be. */
export const tokenizerError = (place: string, problem: string, cause?: unknown): GraftError =>
  new GraftError('input', problem, { place, hint: 'Use the tokenizer.json that was published with the model', cause });

/**
 * A `pattern` of tokenizer.json as a global JavaScript expression. The file writes Oniguruma's dialect; its translation
 * (`\s`, `\w`, `\A`, `(?i:)`, `[[:alpha:]]`, class intersection, possessive quantifiers …) is @huggingface/tokenizers' own.
 */
export function toRegExp(pattern: unknown, place: string): RegExp {
  const { String: text, Regex: regex } = (pattern ?? {}) as Part;
  if (typeof text === 'string') return new RegExp(RegExp.escape(text), 'gu');
  if (typeof regex !== 'string') throw tokenizerError(place, 'A pattern needs a String or a Regex');
  try {
    const { pattern: made } = new SplitPreTokenizer({
      type: 'Split',
      pattern: { Regex: regex },
      behavior: 'Isolated',
      invert: false,
    });
    if (made) return made;
  } catch (error) {
    throw tokenizerError(place, `The expression ${regex} cannot be used: ${(error as Error).message}`, error);
  }
  throw tokenizerError(place, `The expression ${regex} cannot be used`);
}

export const cuts = ['Removed', 'Isolated', 'MergedWithPrevious', 'MergedWithNext', 'Contiguous'] as const;
/** What becomes of the matches at which text is cut. */
export type Cut = (typeof cuts)[number];

/** `text` cut at the matches of `at`; with `invert`, at what lies between them. Empty pieces are left out. */
export function cutText(text: string, at: RegExp, cut: Cut, invert = false): string[] {
  const pieces: string[] = [];
  const matched: boolean[] = [];
  let last = 0;
  const add = (end: number, isMatch: boolean) => {
    if (end > last) {
      pieces.push(text.slice(last, end));
      matched.push(isMatch !== invert);
    }
    last = end;
  };
  at.lastIndex = 0;
  for (let m = at.exec(text); m; m = at.exec(text)) {
    add(m.index, false);
    add(m.index + m[0].length, true);
    if (m[0] === '') at.lastIndex += text.codePointAt(at.lastIndex)! > 0xffff ? 2 : 1;
  }
  add(text.length, false);
  if (cut === 'Isolated') return pieces;
  if (cut === 'Removed') return pieces.filter((_, i) => !matched[i]);
  const out: string[] = [];
  const n = pieces.length;
  for (let i = 0; i < n; ) {
    let end = i + 1;
    if (cut === 'Contiguous') while (end < n && matched[end] === matched[i]) end++;
    else if (cut === 'MergedWithPrevious') end += !matched[i] && matched[end] ? 1 : 0;
    else end += matched[i] && end < n && !matched[end] ? 1 : 0;
    out.push(pieces.slice(i, end).join(''));
    i = end;
  }
  return out;
}

/** GPT-2's printable character for each byte. Source: `bytes_to_unicode` of openai/gpt-2 `encoder.py`. */
const byteChars: readonly string[] = (() => {
  const printable = (b: number) => (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
  let next = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCharCode(printable(b) ? b : next++));
})();
const charBytes: ReadonlyMap<string, number> = new Map(byteChars.map((c, b) => [c, b]));

/** The UTF-8 bytes of `text`, each as its printable character. */
export function toByteChars(text: string): string {
  let out = '';
  for (const byte of Buffer.from(text, 'utf8')) out += byteChars[byte];
  return out;
}

/** The bytes that a byte-level token stands for; of a token with any other character, its own UTF-8. */
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
/** Text of UTF-8 bytes; what is not UTF-8 becomes U+FFFD. */
export const textOf = (bytes: readonly number[]): string => utf8.decode(Uint8Array.from(bytes));
