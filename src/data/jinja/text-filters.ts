import { bind } from './bind.ts';
import { indexOf, requireDefined } from './operators.ts';
import { formatPercent } from './percent.ts';
import * as text from './text.ts';
import { urlize } from './urlize.ts';
import {
  allowed,
  dict,
  fail,
  int,
  isIterable,
  isTrue,
  iterate,
  type Kwargs,
  lengthOf,
  str,
  tuple,
  typeName,
  type Value,
} from './values.ts';
import { wrap } from './word-wrap.ts';

export type Args = readonly (Value | undefined)[];
/** A filter: its parameters, and what it makes of a value. */
export type Filter = readonly [parameters: readonly string[], apply: (value: Value, args: Args) => Value];

const isSafe = (value: Value) => value.type === 'str' && value.safe;
/** A filter of texts, to which anything is one; what it makes of a safe text is safe. */
const ofText = (parameters: readonly string[], apply: (value: string, args: Args) => string): Filter => [
  parameters,
  (value, args) => str(apply(text.pythonStr(value), args), isSafe(value)),
];
/** The value as a text. @throws JinjaError for another value, which has none of a text's methods */
const requireText = (value: Value): string => {
  requireDefined(value);
  return value.type === 'str' ? value.value : fail(`'${typeName(value)}' object is no text`);
};
const numberOf = (value: Value | undefined, otherwise: number) => (value === undefined ? otherwise : indexOf(value));
const textOf = (value: Value | undefined, otherwise: string) => (value === undefined ? otherwise : requireText(value));
const flag = (value: Value | undefined, otherwise = false) => (value === undefined ? otherwise : isTrue(value));
const isGiven = (value: Value | undefined): value is Value => value !== undefined && value.type !== 'none';

/** The filter `title`: words begin after white space, hyphens and opening brackets. */
const title = (value: string): string =>
  value
    .split(/([-\p{White_Space}\x1c-\x1f({[<]+)/u)
    .map((part) => {
      const [first = '', ...rest] = part;
      return first.toUpperCase() + rest.join('').toLowerCase();
    })
    .join('');

function indent(value: Value, [width, first, blank]: Args): Value {
  const unit = width?.type === 'str' ? width.value : ' '.repeat(allowed(numberOf(width, 4), 1000));
  const lines = text.splitLines(`${requireText(value)}\n`);
  const [head = '', ...rest] = lines;
  const isBlankToo = flag(blank);
  const out = [head, ...rest.map((line) => (isBlankToo || line !== '' ? unit + line : line))].join('\n');
  return str((flag(first) ? unit : '') + out, isSafe(value));
}

function truncate(value: Value, [length, killWords, end, leeway]: Args): Value {
  const [size, ending, slack] = [numberOf(length, 255), textOf(end, '...'), isGiven(leeway) ? indexOf(leeway) : 5];
  const endSize = [...ending].length;
  if (size < endSize) fail(`expected length >= ${endSize}, got ${size}`);
  if (slack < 0) fail(`expected leeway >= 0, got ${slack}`);
  if ((lengthOf(value) ?? fail(`object of type '${typeName(value)}' has no len()`)) <= size + slack) return value;
  const kept = [...requireText(value)].slice(0, size - endSize).join('');
  return str((flag(killWords) ? kept : text.splitBy(kept, ' ', 1, true)[0]!) + ending, isSafe(value));
}

/** `urllib.parse.quote`; in a query, `/` is quoted too, and spaces become `+`. */
function quoteUrl(value: Value, isQuery: boolean): string {
  const bytes = value.type === 'bytes' ? value.value : new TextEncoder().encode(text.pythonStr(value));
  const kept = isQuery ? /[A-Za-z0-9_.~-]/ : /[A-Za-z0-9_.~/-]/;
  return [...bytes]
    .map((byte) => {
      const c = String.fromCharCode(byte);
      if (isQuery && c === ' ') return '+';
      return kept.test(c) ? c : `%${byte.toString(16).toUpperCase().padStart(2, '0')}`;
    })
    .join('');
}

function urlencode(value: Value): Value {
  if (value.type === 'str' || !isIterable(value)) return str(quoteUrl(value, false));
  const pairs = value.type === 'dict' ? value.map.entries().map((entry) => tuple(entry)) : [...iterate(value)];
  return str(
    pairs
      .map((pair) => {
        const [key, item, ...more] = iterate(pair);
        return key && item && more.length === 0
          ? `${quoteUrl(key, true)}=${quoteUrl(item, true)}`
          : fail('urlencode needs pairs');
      })
      .join('&'),
  );
}

function xmlAttributes(value: Value, [space]: Args): Value {
  if (value.type !== 'dict') return fail(`'${typeName(value)}' object has no attribute 'items'`);
  const attributes = value.map.entries().flatMap(([key, item]) => {
    if (item.type === 'none' || item.type === 'undefined') return [];
    const name = requireText(key);
    if (/[\t-\r />=]/.test(name)) fail(`Invalid character in attribute name: ${text.pythonRepr(key)}`);
    return [`${text.escapeHtml(key)}="${text.escapeHtml(item)}"`];
  });
  const out = attributes.join(' ');
  return str(flag(space, true) && out !== '' ? ` ${out}` : out);
}

const entities: Readonly<Record<string, string>> = { amp: '&', lt: '<', gt: '>', quot: '"', apos: "'", nbsp: '\u00a0' };
const decodeEntities = (value: string): string =>
  value.replaceAll(/&(?:#(\d+)|#[xX]([\da-fA-F]+)|(\w+));/g, (all, decimal, hex, name) =>
    decimal || hex ? String.fromCodePoint(Number.parseInt(decimal ?? hex, decimal ? 10 : 16)) : (entities[name] ?? all),
  );
/** Without comments and tags, and with one space for each stretch of white space. */
function stripTags(value: string): string {
  let out = value;
  for (const [open, close] of [
    ['<!--', '-->'],
    ['<', '>'],
  ] as const) {
    for (let start = out.indexOf(open); start >= 0; start = out.indexOf(open)) {
      const end = out.indexOf(close, start);
      if (end < 0) break;
      out = out.slice(0, start) + out.slice(end + close.length);
    }
  }
  return decodeEntities(text.splitWords(out).join(' '));
}

function wordWrap(value: Value, [width, breakLong, by, onHyphens]: Args): Value {
  const line = isGiven(by) ? requireText(by) : '\n';
  const size = numberOf(width, 79);
  if (size <= 0) fail(`invalid width ${size} (must be > 0)`);
  return str(
    text
      .splitLines(requireText(value))
      .map((paragraph) => wrap(paragraph, size, flag(breakLong, true), flag(onHyphens, true)).join(line))
      .join(line),
  );
}

function links(value: Value, [limit, noFollow, target, rel, schemes]: Args): Value {
  const words = new Set([...text.splitWords(isGiven(rel) ? requireText(rel) : ''), 'noopener']);
  if (flag(noFollow)) words.add('nofollow');
  const attribute = (name: string, content: string) => ` ${name}="${text.escapeHtml(str(content))}"`;
  const extra = isGiven(schemes) ? [...iterate(schemes)].map(requireText) : [];
  for (const scheme of extra) {
    if (!/^[\p{L}\p{N}_.+-]{2,}:\/{0,2}$/u.test(scheme)) fail(`'${scheme}' is not a valid URI scheme prefix.`);
  }
  const attributes =
    attribute('rel', [...words].sort().join(' ')) + (isGiven(target) ? attribute('target', requireText(target)) : '');
  return str(
    urlize(text.escapeHtml(value), { limit: isGiven(limit) ? indexOf(limit) : undefined, attributes, schemes: extra }),
  );
}

/** `format` takes any arguments, so it is no filter like the others. */
export function formatFilter(value: Value, args: readonly Value[], kwargs: Kwargs): Value {
  if (args.length > 0 && kwargs.size > 0) fail("can't handle positional and keyword arguments at the same time");
  const given = kwargs.size > 0 ? dict([...kwargs].map(([key, item]) => [str(key), item] as const)) : tuple(args);
  return str(formatPercent(text.pythonStr(value), given, isSafe(value) ?? false), isSafe(value));
}

const escapeFilter: Filter = [[], (value) => str(text.escapeHtml(value), true)];

/** The filters that make a text. */
export const textFilters: Readonly<Record<string, Filter>> = {
  capitalize: ofText([], text.capitalize),
  center: [
    ['width'],
    (value, [width]) => {
      const s = text.pythonStr(value);
      const size = numberOf(width, 80);
      const room = allowed(size - [...s].length);
      const left = Math.floor(room / 2) + (room & size & 1);
      return str(' '.repeat(left) + s + ' '.repeat(room - left), isSafe(value));
    },
  ],
  e: escapeFilter,
  escape: escapeFilter,
  forceescape: [[], (value) => str(text.escapeHtml(str(text.pythonStr(value))), true)],
  indent: [['width', 'first', 'blank'], indent],
  lower: ofText([], (s) => s.toLowerCase()),
  replace: [
    ['old!', 'new!', 'count'],
    (value, [old, by, count]) =>
      str(
        text.replaceText(
          text.pythonStr(value),
          text.pythonStr(old!),
          text.pythonStr(by!),
          isGiven(count) ? indexOf(count) : -1,
        ),
      ),
  ],
  safe: [[], (value) => str(text.pythonStr(value), true)],
  string: [[], (value) => (value.type === 'str' ? value : str(text.pythonStr(value)))],
  striptags: [[], (value) => str(stripTags(text.pythonStr(value)))],
  title: ofText([], title),
  trim: ofText(['chars'], (s, [chars]) => text.strip(s, isGiven(chars) ? requireText(chars) : undefined)),
  truncate: [['length', 'killwords', 'end', 'leeway'], truncate],
  upper: ofText([], (s) => s.toUpperCase()),
  urlencode: [[], urlencode],
  urlize: [['trim_url_limit', 'nofollow', 'target', 'rel', 'extra_schemes'], links],
  wordcount: [[], (value) => int((text.pythonStr(value).match(/[\p{L}\p{N}_]+/gu) ?? []).length)],
  wordwrap: [['width', 'break_long_words', 'wrapstring', 'break_on_hyphens'], wordWrap],
  xmlattr: [['autospace'], xmlAttributes],
};

/** The arguments of a filter by position. */
export const bindFilter = (name: string, [parameters]: Filter, args: readonly Value[], kwargs: Kwargs): Args =>
  bind(name, parameters, args, kwargs);
