import { floatRepr } from './decimal.ts';
import { SPACE } from './lexer.ts';
import { typeName, type Value, viewItems } from './values.ts';

/** Python's `str`. */
export const pythonStr = (value: Value): string => (value.type === 'str' ? value.value : strOf(value));
const strOf = (value: Value): string => (value.type === 'undefined' ? '' : pythonRepr(value));

/** Python's `repr`. */
export function pythonRepr(value: Value): string {
  switch (value.type) {
    case 'undefined':
      return 'Undefined';
    case 'none':
      return 'None';
    case 'bool':
      return value.value ? 'True' : 'False';
    case 'int':
      return value.value.toString();
    case 'float':
      return floatRepr(value.value);
    case 'str':
      return value.safe ? `Markup(${quote(value.value)})` : quote(value.value);
    case 'bytes':
      return `b${quoteBytes(value.value)}`;
    case 'list':
      return `[${value.items.map(pythonRepr).join(', ')}]`;
    case 'tuple':
      return `(${value.items.map(pythonRepr).join(', ')}${value.items.length === 1 ? ',' : ''})`;
    case 'dict':
      return `{${value.map
        .entries()
        .map(([key, item]) => `${pythonRepr(key)}: ${pythonRepr(item)}`)
        .join(', ')}}`;
    case 'view':
      return `${typeName(value)}([${viewItems(value).map(pythonRepr).join(', ')}])`;
    case 'range': {
      const [start, stop, step] = value.bounds;
      return step === 1n ? `range(${start}, ${stop})` : `range(${start}, ${stop}, ${step})`;
    }
    case 'iterator':
      return `<${value.kind} object at 0x0>`;
    case 'object':
      return value.repr();
  }
}

const escapes: Readonly<Record<string, string>> = { '\\': '\\\\', '\n': '\\n', '\r': '\\r', '\t': '\\t' };
/** Decimal digits of any script as ASCII's. */
export const asciiDigits = (text: string): string =>
  text.replaceAll(/(?![0-9])\p{Nd}/gu, (c) => {
    let zero = c.codePointAt(0)!;
    while (/\p{Nd}/u.test(String.fromCodePoint(zero - 1))) zero--;
    return String((c.codePointAt(0)! - zero) % 10);
  });

const hex = (code: number, length: number) => code.toString(16).padStart(length, '0');
/** Characters that Python's `repr` writes as escapes. */
const UNPRINTABLE = /[\\\n\r\t]|(?! )[\p{C}\p{Z}]/gu;
export const isPrintable = (text: string): boolean => !/(?! )[\p{C}\p{Z}]/u.test(text);

function quote(text: string): string {
  const mark = text.includes("'") && !text.includes('"') ? '"' : "'";
  const inner = text.replaceAll(UNPRINTABLE, (c) => {
    const code = c.codePointAt(0)!;
    return (
      escapes[c] ?? (code < 0x100 ? `\\x${hex(code, 2)}` : code < 0x10000 ? `\\u${hex(code, 4)}` : `\\U${hex(code, 8)}`)
    );
  });
  return mark + (mark === "'" ? inner.replaceAll("'", "\\'") : inner) + mark;
}

function quoteBytes(bytes: Uint8Array): string {
  const text = [...bytes].map((byte) => {
    const c = String.fromCharCode(byte);
    return escapes[c] ?? (byte < 0x20 || byte > 0x7e ? `\\x${hex(byte, 2)}` : c);
  });
  const mark = text.includes("'") && !text.includes('"') ? '"' : "'";
  return mark + text.map((c) => (c === "'" && mark === "'" ? "\\'" : c)).join('') + mark;
}

const htmlEscapes: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&#34;',
  "'": '&#39;',
};
/** A text with the characters escaped that HTML has a meaning for; safe texts stay. */
export const escapeHtml = (value: Value): string =>
  value.type === 'str' && value.safe ? value.value : pythonStr(value).replaceAll(/[&<>"']/g, (c) => htmlEscapes[c]!);

/** `str.strip` and its one-sided forms. */
export function strip(text: string, characters: string | undefined, atStart = true, atEnd = true): string {
  const chars = [...text];
  const set = characters === undefined ? undefined : new Set(characters);
  const isStripped = (c: string) => (set ? set.has(c) : SPACE.test(c));
  let [from, to] = [0, chars.length];
  if (atStart) while (from < to && isStripped(chars[from]!)) from++;
  if (atEnd) while (to > from && isStripped(chars[to - 1]!)) to--;
  return chars.slice(from, to).join('');
}

/** `str.split` by white space, at most `limit` times. */
export function splitWords(text: string, limit = -1, fromEnd = false): string[] {
  const words: string[] = [];
  const isLimit = () => limit >= 0 && words.length === limit;
  let rest = strip(text, undefined, !fromEnd, fromEnd);
  while (rest !== '') {
    if (isLimit()) {
      words.push(strip(rest, undefined, !fromEnd, fromEnd));
      break;
    }
    const chars = [...rest];
    const at = fromEnd ? chars.findLastIndex((c) => SPACE.test(c)) : chars.findIndex((c) => SPACE.test(c));
    if (at < 0) {
      words.push(rest);
      break;
    }
    const [before, after] = [chars.slice(0, at).join(''), chars.slice(at + 1).join('')];
    words.push(fromEnd ? after : before);
    rest = fromEnd ? strip(before, undefined, false, true) : strip(after, undefined, true, false);
  }
  return fromEnd ? words.reverse() : words;
}

/** `str.split` by a separator, at most `limit` times. */
export function splitBy(text: string, separator: string, limit = -1, fromEnd = false): string[] {
  const parts = text.split(separator);
  if (limit < 0 || parts.length <= limit + 1) return parts;
  return fromEnd
    ? [parts.slice(0, parts.length - limit).join(separator), ...parts.slice(parts.length - limit)]
    : [...parts.slice(0, limit), parts.slice(limit).join(separator)];
}

/** `str.splitlines`. */
export function splitLines(text: string, keepEnds = false): string[] {
  const lines =
    text.match(/[^\n\r\v\f\x1c-\x1e\x85\u2028\u2029]*(?:\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]|$)/gu) ?? [];
  if (lines.at(-1) === '') lines.pop();
  return keepEnds ? lines : lines.map((line) => line.replace(/(?:\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])$/, ''));
}

/** `str.replace`, at most `limit` times. */
export function replaceText(text: string, old: string, by: string, limit = -1): string {
  if (limit < 0 && old !== '') return text.replaceAll(old, () => by);
  if (old !== '') return splitBy(text, old, limit).join(by);
  const chars = [...text];
  const places = limit < 0 ? chars.length + 1 : Math.min(limit, chars.length + 1);
  return chars.map((c, i) => (i < places ? by : '') + c).join('') + (places > chars.length ? by : '');
}

const titleDigraphs: Readonly<Record<string, string>> = {
  ǆ: 'ǅ',
  Ǆ: 'ǅ',
  ǉ: 'ǈ',
  Ǉ: 'ǈ',
  ǌ: 'ǋ',
  Ǌ: 'ǋ',
  ǳ: 'ǲ',
  Ǳ: 'ǲ',
};
/** A character in title case. */
const titleCase = (c: string): string => {
  const upper = c.toUpperCase();
  const [first = '', ...rest] = upper;
  return titleDigraphs[c] ?? (rest.length > 0 ? first + rest.join('').toLowerCase() : upper);
};

/** `str.capitalize`. */
export function capitalize(text: string): string {
  const [first = ''] = text;
  return titleCase(first) + lowerAfter(text, first);
}
/** What follows the first character, in lower case: a sigma's depends on its place in the word. */
const lowerAfter = (text: string, first: string) => text.toLowerCase().slice(first.toLowerCase().length);

/** `str.title`: a word begins after a character without case. */
export const titled = (text: string): string =>
  text.replaceAll(
    /[\p{Cased}](?:[\p{Cased}])*/gu,
    (word) => titleCase([...word][0]!) + lowerAfter(word, [...word][0]!),
  );
