import { bind } from './bind.ts';
import { indexOf } from './operators.ts';
import * as text from './text.ts';
import {
  allowed,
  bool,
  fail,
  int,
  isIterable,
  iterate,
  list,
  type Str,
  str,
  tuple,
  typeName,
  type Value,
} from './values.ts';

/** A method of texts: the parameters that may be given, those by name only in functions that take names, and what it returns. */
interface Method {
  readonly parameters: readonly string[];
  readonly byName?: boolean;
  readonly call: (self: string, args: readonly (Value | undefined)[]) => Value;
}
type Args = readonly (Value | undefined)[];

const isNone = (value: Value | undefined) => value === undefined || value.type === 'none';
const textOf = (value: Value | undefined): string =>
  value?.type === 'str' ? value.value : fail(`must be str, not ${value ? typeName(value) : 'nothing'}`);
const optionalText = (value: Value | undefined): string | undefined => (isNone(value) ? undefined : textOf(value));
const numberOf = (value: Value | undefined, otherwise: number): number =>
  value === undefined ? otherwise : indexOf(value);

/** The part [start, stop) of a text that a search is in, and where it begins, in code points. */
function window(
  self: string,
  start: Value | undefined,
  stop: Value | undefined,
): { part: string; from: number } | undefined {
  if (isNone(start) && isNone(stop)) return { part: self, from: 0 };
  const chars = [...self];
  const clamp = (value: Value | undefined, otherwise: number) => {
    const at = isNone(value) ? otherwise : indexOf(value!);
    return Math.max(0, at < 0 ? at + chars.length : at);
  };
  const [from, to] = [clamp(start, 0), Math.min(clamp(stop, chars.length), chars.length)];
  return from > to ? undefined : { part: chars.slice(from, to).join(''), from };
}

function find(self: string, [sub, start, stop]: Args, last: boolean): number {
  const found = window(self, start, stop);
  if (!found) return -1;
  const at = last ? found.part.lastIndexOf(textOf(sub)) : found.part.indexOf(textOf(sub));
  return at < 0 ? -1 : found.from + [...found.part.slice(0, at)].length;
}
const findOrFail = (self: string, args: Args, last: boolean): number => {
  const at = find(self, args, last);
  return at < 0 ? fail('substring not found') : at;
};

function affixed(self: string, [affix, start, stop]: Args, atStart: boolean): boolean {
  const affixes = affix?.type === 'tuple' ? affix.items.map(textOf) : [textOf(affix)];
  const found = window(self, start, stop);
  if (!found) return false;
  return affixes.some((text) => (atStart ? found.part.startsWith(text) : found.part.endsWith(text)));
}

function count(self: string, [sub, start, stop]: Args): number {
  const found = window(self, start, stop);
  if (!found) return 0;
  const part = textOf(sub);
  return part === '' ? [...found.part].length + 1 : found.part.split(part).length - 1;
}

function padded(self: string, [width, fill]: Args, where: 'left' | 'right' | 'both'): string {
  const c = fill === undefined ? ' ' : textOf(fill);
  if ([...c].length !== 1) fail('The fill character must be exactly one character long');
  const room = numberOf(width, 0) - [...self].length;
  if (allowed(room) === 0) return self;
  const before =
    where === 'left' ? 0 : where === 'right' ? room : Math.floor(room / 2) + (room & numberOf(width, 0) & 1);
  return c.repeat(before) + self + c.repeat(room - before);
}

function zfill(self: string, width: number): string {
  const [, sign = '', digits = ''] = /^([-+]?)([\s\S]*)$/.exec(self)!;
  return sign + '0'.repeat(allowed(width - [...self].length)) + digits;
}

function partition(self: string, separator: string, last: boolean): Value {
  if (separator === '') fail('empty separator');
  const at = last ? self.lastIndexOf(separator) : self.indexOf(separator);
  const parts =
    at >= 0
      ? [self.slice(0, at), separator, self.slice(at + separator.length)]
      : last
        ? ['', '', self]
        : [self, '', ''];
  return tuple(parts.map((part) => str(part)));
}

function split(self: string, [separator, limit]: Args, last: boolean): Value {
  const most = numberOf(limit, -1);
  if (isNone(separator)) return list(text.splitWords(self, most, last).map((part) => str(part)));
  if (textOf(separator) === '') fail('empty separator');
  return list(text.splitBy(self, textOf(separator), most, last).map((part) => str(part)));
}

function join(self: string, items: Value | undefined): Value {
  if (!items || !isIterable(items)) return fail('can only join an iterable');
  return str(
    [...iterate(items)]
      .map((item, i) =>
        item.type === 'str' ? item.value : fail(`sequence item ${i}: expected str instance, ${typeName(item)} found`),
      )
      .join(self),
  );
}

function expandTabs(self: string, size: number): string {
  let column = 0;
  let out = '';
  for (const c of self) {
    if (c === '\t') {
      const width = size > 0 ? allowed(size - (column % size), 1000) : 0;
      out += ' '.repeat(width);
      column += width;
    } else {
      out += c;
      column = c === '\n' || c === '\r' ? 0 : column + 1;
    }
  }
  return out;
}

const casefold = (self: string) =>
  [...self].map((c) => [...c.toUpperCase()].map((u) => u.toLowerCase()).join('')).join('');
function swapcase(self: string): string {
  const chars = [...self];
  const lower = [...self.toLowerCase()]; // a sigma's lower case depends on its place
  const lowerOf = (c: string, i: number) => (lower.length === chars.length ? lower[i]! : c.toLowerCase());
  return chars
    .map((c, i) => (/\p{Uppercase}/u.test(c) ? lowerOf(c, i) : /\p{Lowercase}/u.test(c) ? c.toUpperCase() : c))
    .join('');
}
const hasCase = (self: string) => /\p{Lowercase}|\p{Uppercase}|\p{Lt}/u.test(self);
const isTitle = (self: string) => hasCase(self) && text.titled(self) === self;

const strings = (call: (self: string) => string): Method => ({ parameters: [], call: (self) => str(call(self)) });
const checks = (pattern: RegExp): Method => ({ parameters: [], call: (self) => bool(pattern.test(self)) });
const found = ['sub!', 'start', 'end'];

function translate(self: string, table: Value): string {
  if (table.type !== 'dict') return fail('translate() needs a dictionary');
  return [...self]
    .map((c) => {
      const by = table.map.get(int(c.codePointAt(0)!));
      if (by === undefined) return c;
      if (by.type === 'none') return '';
      return by.type === 'int' ? String.fromCodePoint(Number(by.value)) : textOf(by);
    })
    .join('');
}

function encode(self: string, encoding: string): Value {
  const name = encoding.toLowerCase().replaceAll(/[-_]/g, '');
  if (name === 'utf8') return { type: 'bytes', value: new TextEncoder().encode(self) };
  const limit = { ascii: 0x80, latin1: 0x100 }[name] ?? fail(`the encoding ${encoding} is not supported`);
  const codes = [...self].map((c) => c.codePointAt(0)!);
  if (codes.some((code) => code >= limit)) fail(`'${encoding}' codec cannot encode the text`);
  return { type: 'bytes', value: Uint8Array.from(codes) };
}

/** The methods of Python's `str`. */
export const stringMethods: Readonly<Record<string, Method>> = {
  capitalize: strings(text.capitalize),
  casefold: strings(casefold),
  center: { parameters: ['width!', 'fillchar'], call: (s, args) => str(padded(s, args, 'both')) },
  count: { parameters: found, call: (s, args) => int(count(s, args)) },
  encode: { parameters: ['encoding', 'errors'], byName: true, call: (s, [e]) => encode(s, optionalText(e) ?? 'utf-8') },
  endswith: { parameters: found, call: (s, args) => bool(affixed(s, args, false)) },
  expandtabs: { parameters: ['tabsize'], byName: true, call: (s, [size]) => str(expandTabs(s, numberOf(size, 8))) },
  find: { parameters: found, call: (s, args) => int(find(s, args, false)) },
  index: { parameters: found, call: (s, args) => int(findOrFail(s, args, false)) },
  isalnum: checks(/^[\p{L}\p{N}]+$/u),
  isalpha: checks(/^\p{L}+$/u),
  isascii: checks(/^[\0-\x7f]*$/),
  isdecimal: checks(/^\p{Nd}+$/u),
  isdigit: checks(/^[\p{Nd}²³¹⁰⁴-⁹₀-₉①-⑨⑴-⑼⒈-⒐]+$/u),
  isidentifier: checks(/^[\p{XID_Start}_]\p{XID_Continue}*$/u),
  islower: { parameters: [], call: (s) => bool(hasCase(s) && !/\p{Uppercase}|\p{Lt}/u.test(s)) },
  isnumeric: checks(/^[\p{N}〇一二三四五六七八九十百千万億兆]+$/u),
  isprintable: { parameters: [], call: (s) => bool(text.isPrintable(s)) },
  isspace: checks(/^[\p{White_Space}\x1c-\x1f]+$/u),
  istitle: { parameters: [], call: (s) => bool(isTitle(s)) },
  isupper: { parameters: [], call: (s) => bool(hasCase(s) && !/\p{Lowercase}|\p{Lt}/u.test(s)) },
  join: { parameters: ['iterable!'], call: (s, [items]) => join(s, items) },
  ljust: { parameters: ['width!', 'fillchar'], call: (s, args) => str(padded(s, args, 'left')) },
  lower: strings((s) => s.toLowerCase()),
  lstrip: { parameters: ['chars'], call: (s, [c]) => str(text.strip(s, optionalText(c), true, false)) },
  partition: { parameters: ['sep!'], call: (s, [sep]) => partition(s, textOf(sep), false) },
  removeprefix: {
    parameters: ['prefix!'],
    call: (s, [p]) => str(s.startsWith(textOf(p)) ? s.slice(textOf(p).length) : s),
  },
  removesuffix: {
    parameters: ['suffix!'],
    call: (s, [p]) => str(textOf(p) !== '' && s.endsWith(textOf(p)) ? s.slice(0, -textOf(p).length) : s),
  },
  replace: {
    parameters: ['old!', 'new!', 'count'],
    call: (s, [old, by, most]) => str(text.replaceText(s, textOf(old), textOf(by), numberOf(most, -1))),
  },
  rfind: { parameters: found, call: (s, args) => int(find(s, args, true)) },
  rindex: { parameters: found, call: (s, args) => int(findOrFail(s, args, true)) },
  rjust: { parameters: ['width!', 'fillchar'], call: (s, args) => str(padded(s, args, 'right')) },
  rpartition: { parameters: ['sep!'], call: (s, [sep]) => partition(s, textOf(sep), true) },
  rsplit: { parameters: ['sep', 'maxsplit'], byName: true, call: (s, args) => split(s, args, true) },
  rstrip: { parameters: ['chars'], call: (s, [c]) => str(text.strip(s, optionalText(c), false, true)) },
  split: { parameters: ['sep', 'maxsplit'], byName: true, call: (s, args) => split(s, args, false) },
  splitlines: {
    parameters: ['keepends'],
    byName: true,
    call: (s, [keep]) => list(text.splitLines(s, numberOf(keep, 0) !== 0).map((line) => str(line))),
  },
  startswith: { parameters: found, call: (s, args) => bool(affixed(s, args, true)) },
  strip: { parameters: ['chars'], call: (s, [c]) => str(text.strip(s, optionalText(c))) },
  swapcase: strings(swapcase),
  title: strings(text.titled),
  translate: { parameters: ['table!'], call: (s, [table]) => str(translate(s, table!)) },
  upper: strings((s) => s.toUpperCase()),
  zfill: { parameters: ['width!'], call: (s, [width]) => str(zfill(s, numberOf(width, 0))) },
};

/** What methods of safe texts escape in their arguments. */
const escapedArguments = new Set(['replace', 'join', 'center', 'ljust', 'rjust']);

/** Calls a method of a text; those of safe texts return safe ones. */
export function callStringMethod(
  name: string,
  self: Str,
  args: readonly Value[],
  kwargs: ReadonlyMap<string, Value>,
): Value {
  const { parameters, byName = false, call } = stringMethods[name]!;
  if (kwargs.size > 0 && !byName) fail(`str.${name}() takes no keyword arguments`);
  const bound = bind(`str.${name}`, parameters, args, kwargs);
  if (!self.safe) return call(self.value, bound);
  const given = escapedArguments.has(name) ? bound.map((value) => value && escaped(value)) : bound;
  return markedSafe(call(self.value, given));
}

const escaped = (value: Value): Value =>
  value.type === 'str'
    ? str(text.escapeHtml(value))
    : value.type === 'list' || value.type === 'tuple'
      ? list(value.items.map((item) => str(text.escapeHtml(item))))
      : value;
const markedSafe = (value: Value): Value =>
  value.type === 'str'
    ? str(value.value, true)
    : value.type === 'list'
      ? list(value.items.map(markedSafe))
      : value.type === 'tuple'
        ? tuple(value.items.map(markedSafe))
        : value;
