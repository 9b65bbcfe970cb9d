import { floatDigits, integerDigits } from './number-format.ts';
import { escapeHtml, pythonRepr, pythonStr } from './text.ts';
import { allowed, fail, str, type Value } from './values.ts';

const SPECIFIER = /%(?:\(((?:[^()]|\([^()]*\))*)\))?([-+ #0]*)(\*|\d+)?(\.(?:\*|\d+)?)?[hlL]?([\s\S])?/g;

/** A part of a formatted text, and the value that it shows. */
export interface Part {
  readonly text: string;
  readonly of?: Value;
}

/** Python's `text % values`. */
export const formatPercent = (text: string, given: Value, safe: boolean): string =>
  percentParts(text, given, safe)
    .map((part) => part.text)
    .join('');

/** The parts of `text % values`. */
export function percentParts(text: string, given: Value, safe: boolean): Part[] {
  const values = given.type === 'tuple' ? given.items : [given];
  const isMapping = given.type === 'dict';
  let used = 0;
  const next = (): Value => (used < values.length ? values[used++]! : fail('not enough arguments for format string'));
  const size = (part: string | undefined): number | undefined => {
    if (part !== '*') return part === undefined ? undefined : Number(part);
    const value = next();
    return value.type === 'int' ? Number(value.value) : fail('* wants int');
  };
  const parts: Part[] = [];
  let from = 0;
  for (const match of text.matchAll(SPECIFIER)) {
    const [all, key, flags = '', w, p, kind] = match;
    parts.push({ text: text.slice(from, match.index) });
    from = match.index + all.length;
    if (kind === undefined) return fail('incomplete format');
    if (key !== undefined && !isMapping) fail('format requires a mapping');
    const width = size(w) ?? 0;
    const precision = p === undefined ? undefined : (size(p.slice(1) || undefined) ?? 0);
    if (kind === '%') {
      if (all !== '%%') fail("unsupported format character '%'");
      parts.push({ text: '%' });
      continue;
    }
    const value = key === undefined ? next() : (isMapping && given.map.getText(key)) || fail(`KeyError: '${key}'`);
    const isLeft = flags.includes('-') || width < 0;
    const { sign, body, zeros } = converted(value, kind, flags, precision, safe);
    const room = allowed(Math.abs(width) - [...(sign + body)].length);
    const filled = zeros && flags.includes('0') && !isLeft;
    const whole = filled ? sign + '0'.repeat(room) + body : sign + body;
    const space = ' '.repeat(filled ? 0 : room);
    parts.push({ text: isLeft ? whole + space : space + whole, of: value });
  }
  parts.push({ text: text.slice(from) });
  if (used < values.length && given.type === 'tuple') fail('not all arguments converted during string formatting');
  if (used === 0 && given.type !== 'tuple' && !acceptsNothing.has(given.type)) {
    fail('not all arguments converted during string formatting');
  }
  return parts;
}

/** Values that have items, which a text without specifiers does not have to use. */
const acceptsNothing = new Set(['dict', 'list', 'undefined', 'bytes', 'range']);

function converted(value: Value, kind: string, flags: string, precision: number | undefined, safe: boolean) {
  const cut = (text: string) => (precision === undefined ? text : [...text].slice(0, precision).join(''));
  const plain = (body: string) => ({ sign: '', body: cut(body), zeros: false });
  const signOf = (negative: boolean) => (negative ? '-' : flags.includes('+') ? '+' : flags.includes(' ') ? ' ' : '');
  const alternate = flags.includes('#');
  const number =
    value.type === 'bool'
      ? BigInt(value.value)
      : value.type === 'int' || value.type === 'float'
        ? value.value
        : undefined;
  switch (kind) {
    case 's':
      return plain(safe ? escapeHtml(value) : pythonStr(value));
    case 'r':
      return plain(safe ? escapeHtml(str(pythonRepr(value))) : pythonRepr(value));
    case 'a':
      return plain(ascii(pythonRepr(value)));
    case 'c':
      if (typeof number === 'bigint') return plain(String.fromCodePoint(Number(number)));
      return value.type === 'str' && [...value.value].length === 1
        ? plain(value.value)
        : fail('%c requires int or char');
    case 'd':
    case 'i':
    case 'u':
    case 'o':
    case 'x':
    case 'X': {
      if (number === undefined) return fail(`%${kind} format: a real number is required, not ${value.type}`);
      const isDecimal = 'diu'.includes(kind);
      if (typeof number === 'number' && !(isDecimal && Number.isFinite(number))) {
        return fail(`%${kind} format: an integer is required, not float`);
      }
      const whole = typeof number === 'bigint' ? number : BigInt(Math.trunc(number));
      const { prefix, digits } = integerDigits(whole, { kind: isDecimal ? 'd' : kind, alternate });
      return { sign: signOf(whole < 0n) + prefix, body: digits.padStart(allowed(precision ?? 0), '0'), zeros: true };
    }
    case 'e':
    case 'E':
    case 'f':
    case 'F':
    case 'g':
    case 'G': {
      if (number === undefined) return fail(`must be real number, not ${value.type}`);
      const float = Number(number);
      const isNegative = float < 0 || Object.is(float, -0);
      return {
        sign: signOf(isNegative),
        body: floatDigits(float, { kind, precision: precision ?? 6, alternate }),
        zeros: Number.isFinite(float),
      };
    }
  }
  return fail(`unsupported format character '${kind}'`);
}

/** A text with escapes for all that is not ASCII. */
export const ascii = (text: string): string =>
  text.replaceAll(/[^\0-\x7f]/gu, (c) => {
    const code = c.codePointAt(0)!;
    const hex = code.toString(16);
    return code < 0x100
      ? `\\x${hex.padStart(2, '0')}`
      : code < 0x10000
        ? `\\u${hex.padStart(4, '0')}`
        : `\\U${hex.padStart(8, '0')}`;
  });
