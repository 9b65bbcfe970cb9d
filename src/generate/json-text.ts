/** XGrammar's classes of characters in strings of JSON: those of a pattern may have characters that JSON must escape. */
import { GraftError } from '../base/index.ts';

type Range = readonly [first: number, last: number];

/** What a string of JSON cannot hold as it is: control characters, the quotation mark, the backslash. */
const escaped: readonly Range[] = [
  [0, 0x1f],
  [0x22, 0x22],
  [0x5c, 0x5c],
];
const inClass = '\\0-\\x1f\\"\\\\';
const letters: Readonly<Record<string, number>> = { 0: 0, a: 7, b: 8, t: 9, n: 10, v: 11, f: 12, r: 13, e: 27 };

/** The characters that the inside of a class stands for. */
function rangesOf(inside: string): Range[] {
  const characters: { readonly code: number; readonly isDash: boolean }[] = [];
  const pattern = /\\x([\da-fA-F]{1,2})|\\u([\da-fA-F]{4})|\\U([\da-fA-F]{8})|\\(.)|(.)/gsu;
  for (const [, x, u, U, letter, plain] of inside.matchAll(pattern)) {
    const hex = x ?? u ?? U;
    const code =
      hex !== undefined ? Number.parseInt(hex, 16) : (letters[letter ?? ''] ?? (letter ?? plain)!.codePointAt(0)!);
    characters.push({ code, isDash: plain === '-' });
  }
  const ranges: Range[] = [];
  for (let i = 0; i < characters.length; i++) {
    const last = characters[i + 1]?.isDash ? characters[i + 2] : undefined;
    ranges.push([characters[i]!.code, last?.code ?? characters[i]!.code]);
    if (last) i += 2;
  }
  return ranges;
}

const without = (ranges: readonly Range[], [first, last]: Range): Range[] =>
  ranges.flatMap(([from, to]): Range[] =>
    to < first || from > last
      ? [[from, to]]
      : [...(from < first ? [[from, first - 1] as const] : []), ...(to > last ? [[last + 1, to] as const] : [])],
  );

const hex = (code: number): string => `\\U${code.toString(16).padStart(8, '0')}`;

/** A class without what JSON escapes. */
function safeClass(text: string): string {
  if (text.startsWith('[^')) return `${text.slice(0, -1)}${inClass}]`;
  const before = rangesOf(text.slice(1, -1));
  const after = escaped.reduce(without, before);
  if (after.length === before.length && after.every(([a, b], i) => a === before[i]![0] && b === before[i]![1]))
    return text;
  if (after.length > 0) return `[${after.map(([a, b]) => (a === b ? hex(a) : `${hex(a)}-${hex(b)}`)).join('')}]`;
  throw new GraftError('usage', 'a pattern needs a character that JSON cannot hold as it is', { place: 'grammar' });
}

/** The rules of JSON itself, and of white space between its parts, whose classes are right. */
const ofJson = /^basic_/;

/**
 * A grammar of JSON in which the classes of characters of its patterns leave out what JSON escapes.
 * @throws GraftError 'usage' for a class that would be empty
 */
export const withJsonClasses = (ebnf: string): string =>
  ebnf
    .split('\n')
    .map((rule) =>
      ofJson.test(rule)
        ? rule
        : rule.replace(/"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]/g, (part) =>
            part.startsWith('[') ? safeClass(part) : part,
          ),
    )
    .join('\n');
