import { attributeOnly, getItem } from './attributes.ts';
import { floatRepr, roundFloat, roundInteger } from './decimal.ts';
import { jsonStyle, toJson } from './json.ts';
import { binary, equals, indexOf, numeric, ordered, requireDefined } from './operators.ts';
import { prettyRepr } from './pretty.ts';
import { asciiDigits, pythonStr, strip } from './text.ts';
import type { Args, Filter } from './text-filters.ts';
import {
  allowed,
  fail,
  float,
  int,
  isIterable,
  isTrue,
  iterate,
  iterator,
  lengthOf,
  list,
  newSet,
  str,
  tuple,
  typeName,
  undefinedValue,
  type Value,
} from './values.ts';

const flag = (value: Value | undefined, otherwise = false) => (value === undefined ? otherwise : isTrue(value));
const isGiven = (value: Value | undefined): value is Value => value !== undefined && value.type !== 'none';
const folded = (value: Value): Value => (value.type === 'str' ? str(value.value.toLowerCase()) : value);

/** The keys of a path such as `function.name` or `0.role`. */
function pathOf(attribute: Value | undefined): Value[] {
  if (!isGiven(attribute)) return [];
  if (attribute.type !== 'str') return [attribute];
  return attribute.value.split('.').map((part) => (/^\p{Nd}+$/u.test(part) ? int(BigInt(part)) : str(part)));
}

/** Looks an attribute up in an item, with a value for where there is none. */
export function getter(attribute: Value | undefined, otherwise?: Value): (item: Value) => Value {
  const path = pathOf(attribute);
  return (item) =>
    path.reduce((value, key) => {
      const found = getItem(value, key);
      return found.type === 'undefined' && isGiven(otherwise) ? otherwise : found;
    }, item);
}

/** What items are compared by: an attribute, and texts without their case. */
function sortKey(
  attribute: Value | undefined,
  caseSensitive: Value | undefined,
  otherwise?: Value,
): (item: Value) => Value {
  const get = getter(attribute, otherwise);
  return flag(caseSensitive) ? get : (item) => folded(get(item));
}

/** The items in the order of their keys; those of equal keys stay in order. */
export function sorted(items: Iterable<Value>, key: (item: Value) => Value, reverse: boolean): Value[] {
  const keyed = [...items].map((item) => ({ item, key: key(item) }));
  const before = (a: Value, b: Value) => (reverse ? ordered('<', b, a) : ordered('<', a, b));
  keyed.sort((a, b) => (before(a.key, b.key) ? -1 : before(b.key, a.key) ? 1 : 0));
  return keyed.map(({ item }) => item);
}

function sort(value: Value, [reverse, caseSensitive, attribute]: Args): Value {
  const parts = attribute?.type === 'str' ? attribute.value.split(',').map((part) => str(part)) : [attribute];
  const keys = parts.map((part) => sortKey(part, caseSensitive));
  return list(sorted(iterate(value), (item) => list(keys.map((key) => key(item))), flag(reverse)));
}

function dictSort(value: Value, [caseSensitive, by, reverse]: Args): Value {
  const name = by === undefined ? 'key' : pythonStr(by);
  if (name !== 'key' && name !== 'value') fail('You can only sort by either "key" or "value"');
  requireDefined(value);
  if (value.type !== 'dict') return fail(`'${typeName(value)}' object has no attribute 'items'`);
  const at = name === 'key' ? 0 : 1;
  const key = (pair: Value) => {
    const part = (pair as Extract<Value, { type: 'tuple' }>).items[at]!;
    return flag(caseSensitive) ? part : folded(part);
  };
  return list(
    sorted(
      value.map.entries().map((entry) => tuple(entry)),
      key,
      flag(reverse),
    ),
  );
}

function extreme(value: Value, [caseSensitive, attribute]: Args, operator: '<' | '>'): Value {
  const key = sortKey(attribute, caseSensitive);
  let best: { item: Value; key: Value } | undefined;
  for (const item of iterate(value)) {
    const candidate = { item, key: key(item) };
    if (!best || ordered(operator, candidate.key, best.key)) best = candidate;
  }
  return best?.item ?? undefinedValue('No aggregated item, sequence was empty.');
}

function* unique(value: Value, [caseSensitive, attribute]: Args): Generator<Value> {
  const key = sortKey(attribute, caseSensitive);
  const seen = newSet();
  for (const item of iterate(value)) {
    const id = key(item);
    if (seen.has(id)) continue;
    seen.set(id, id);
    yield item;
  }
}

function groupBy(value: Value, [attribute, otherwise, caseSensitive]: Args): Value {
  const key = sortKey(attribute, caseSensitive, otherwise);
  const get = getter(attribute, otherwise);
  const groups: { key: Value; items: Value[] }[] = [];
  for (const item of sorted(iterate(value), key, false)) {
    const last = groups.at(-1);
    if (last && equals(last.key, key(item))) last.items.push(item);
    else groups.push({ key: key(item), items: [item] });
  }
  return list(groups.map(({ items }) => tuple([get(items[0]!), list(items)], ['grouper', 'list'])));
}

function sum(value: Value, [attribute, start]: Args): Value {
  const get = getter(attribute);
  if (start?.type === 'str') fail("sum() can't sum strings [use ''.join(seq) instead]");
  let total: Value = start ?? int(0);
  for (const item of iterate(value)) total = binary('+', total, get(item));
  return total;
}

/** The items from the last to the first; undefined for what has no end to begin at. */
function reversed(value: Value): Value[] | undefined {
  const hasEnd = ['list', 'tuple', 'range', 'str', 'dict', 'view', 'bytes', 'undefined'].includes(value.type);
  return hasEnd ? [...iterate(value)].reverse() : undefined;
}
const reversedKind = (value: Value) => (value.type === 'list' ? 'list_reverseiterator' : 'reversed');

function* slices(value: Value, [count, fill]: Args): Generator<Value> {
  const items = [...iterate(value)];
  const n = indexOf(count!);
  allowed(n, 10);
  if (n === 0) fail('integer division or modulo by zero');
  const [size, longer] = [Math.floor(items.length / n), ((items.length % n) + n) % n];
  let offset = 0;
  for (let i = 0; i < n; i++) {
    const start = offset + i * size;
    if (i < longer) offset++;
    const part = items.slice(start, offset + (i + 1) * size);
    yield list(isGiven(fill) && i >= longer ? [...part, fill] : part);
  }
}

function* batches(value: Value, [count, fill]: Args): Generator<Value> {
  const size = count!;
  let batch: Value[] = [];
  for (const item of iterate(value)) {
    if (equals(int(batch.length), size)) {
      yield list(batch);
      batch = [];
    }
    batch.push(item);
  }
  if (batch.length === 0) return;
  const room = isGiven(fill) ? allowed(indexOf(size) - batch.length) : 0;
  yield list([...batch, ...Array.from({ length: room }, () => fill!)]);
}

/** The whole number that a text is in a base, as Python's `int`; undefined for another text. */
function parseInteger(text: string, base: number): bigint | undefined {
  const [, sign = '', body = ''] = /^([-+]?)([\s\S]*)$/.exec(asciiDigits(strip(text, undefined)).toLowerCase())!;
  const prefixes: Readonly<Record<string, number>> = { '0x': 16, '0o': 8, '0b': 2 };
  const prefix = prefixes[body.slice(0, 2)];
  const hasPrefix = prefix !== undefined && (base === 0 || base === prefix);
  const radix = base === 0 ? (hasPrefix ? prefix : 10) : base;
  const digits = hasPrefix ? body.slice(2).replace(/^_/, '') : body;
  if (!/^[\da-z]+(_[\da-z]+)*$/.test(digits) || (base === 0 && !hasPrefix && /^0[\d_]*[1-9]/.test(digits)))
    return undefined;
  let value = 0n;
  for (const c of digits.replaceAll('_', '')) {
    const digit = Number.parseInt(c, 36);
    if (digit >= radix) return undefined;
    value = value * BigInt(radix) + BigInt(digit);
  }
  return sign === '-' ? -value : value;
}

/** The number that a text is, as Python's `float`; undefined for another text. */
function parseFloatText(text: string): number | undefined {
  const body = asciiDigits(strip(text, undefined)).toLowerCase();
  const special = /^([-+]?)(inf|infinity|nan)$/.exec(body);
  if (special) return special[2] === 'nan' ? Number.NaN : special[1] === '-' ? -Infinity : Infinity;
  const isNumber = /^[-+]?(\d+(_\d+)*\.?(\d+(_\d+)*)?|\.\d+(_\d+)*)(e[-+]?\d+(_\d+)*)?$/.test(body);
  return isNumber ? Number(body.replaceAll('_', '')) : undefined;
}

function toFloat(value: Value): number | undefined {
  requireDefined(value);
  const number = numeric(value);
  if (typeof number === 'bigint' && !Number.isFinite(Number(number))) return fail('int too large to convert to float');
  return value.type === 'str' ? parseFloatText(value.value) : number === undefined ? undefined : Number(number);
}

function toInt(value: Value, [otherwise = int(0), base]: Args): Value {
  if (value.type === 'str') {
    const radix = base === undefined ? 10 : indexOf(base);
    const whole = radix === 0 || (radix >= 2 && radix <= 36) ? parseInteger(value.value, radix) : undefined;
    if (whole !== undefined) return int(whole);
  }
  requireDefined(value);
  const number = value.type === 'str' ? parseFloatText(value.value) : numeric(value);
  if (typeof number === 'bigint') return int(number);
  if (number === undefined || Number.isNaN(number)) return otherwise;
  if (!Number.isFinite(number))
    return value.type === 'str' ? otherwise : fail('cannot convert float infinity to integer');
  return int(BigInt(Math.trunc(number)));
}

function round(value: Value, [precision, method]: Args): Value {
  const how = method === undefined ? 'common' : pythonStr(method);
  if (!['common', 'ceil', 'floor'].includes(how)) fail('method must be common, ceil or floor');
  const digits = precision === undefined ? 0 : indexOf(precision);
  if (Math.abs(digits) > 1000) fail('round() takes at most 1000 digits');
  const number = numeric(value);
  if (number === undefined) return fail(`type ${typeName(value)} doesn't define __round__ method`);
  if (how === 'common')
    return typeof number === 'bigint' ? int(roundInteger(number, digits)) : float(roundFloat(number, digits));
  const scale: Value = digits >= 0 ? int(10n ** BigInt(digits)) : float(10 ** digits);
  const scaled = numeric(binary('*', value, scale))!;
  const whole = typeof scaled === 'bigint' ? scaled : BigInt(how === 'ceil' ? Math.ceil(scaled) : Math.floor(scaled));
  return binary('/', int(whole), scale);
}

function fileSize(value: Value, [binaryUnits]: Args): Value {
  const bytes = toFloat(value) ?? fail(`could not convert ${typeName(value)} to float`);
  const base = flag(binaryUnits) ? 1024 : 1000;
  if (bytes === 1) return str('1 Byte');
  if (bytes < base) return str(`${Math.trunc(bytes)} Bytes`);
  const units = [...(flag(binaryUnits) ? 'KMGTPEZY' : 'kMGTPEZY')].map(
    (unit) => unit + (flag(binaryUnits) ? 'iB' : 'B'),
  );
  const at = units.findIndex((_, i) => bytes < base ** (i + 2));
  const i = at < 0 ? units.length - 1 : at;
  const number = (base * bytes) / base ** (i + 2);
  return str(`${oneDigit(number)} ${units[i]!}`);
}
const oneDigit = (value: number) => floatRepr(roundFloat(value, 1));

function join(value: Value, [separator, attribute]: Args): Value {
  const get = getter(attribute);
  return str([...iterate(value)].map((item) => pythonStr(get(item))).join(separator ? pythonStr(separator) : ''));
}

const lengthFilter: Filter = [
  [],
  (value) => int(lengthOf(value) ?? fail(`object of type '${typeName(value)}' has no len()`)),
];
const defaultFilter: Filter = [
  ['default_value', 'boolean'],
  (value, [otherwise, isBoolean]) =>
    value.type === 'undefined' || (flag(isBoolean) && !isTrue(value)) ? (otherwise ?? str('')) : value,
];
const generator = (
  name: string,
  parameters: readonly string[],
  items: (value: Value, args: Args) => Generator<Value>,
): Filter => [parameters, (value, args) => iterator(name, items(value, args))];

function* itemPairs(value: Value): Generator<Value> {
  if (value.type === 'undefined') return;
  if (value.type !== 'dict') fail('Can only get item pairs from a mapping.');
  else for (const entry of value.map.entries()) yield tuple(entry);
}

function absolute(value: Value): Value {
  const number = numeric(value);
  if (number === undefined) return fail(`bad operand type for abs(): '${typeName(value)}'`);
  return typeof number === 'bigint' ? int(number < 0n ? -number : number) : float(Math.abs(number));
}

/** The filters of lists, dictionaries and numbers. */
export const listFilters: Readonly<Record<string, Filter>> = {
  abs: [[], absolute],
  attr: [
    ['name!'],
    (value, [name]) => attributeOnly(value, name!.type === 'str' ? name!.value : fail('attribute name must be string')),
  ],
  batch: generator('generator', ['linecount!', 'fill_with'], batches),
  count: lengthFilter,
  d: defaultFilter,
  default: defaultFilter,
  dictsort: [['case_sensitive', 'by', 'reverse'], dictSort],
  filesizeformat: [['binary'], fileSize],
  first: [[], (value) => iterate(value).next().value ?? undefinedValue('No first item, sequence was empty.')],
  float: [
    ['default'],
    (value, [otherwise]) => {
      const number = toFloat(value);
      return number === undefined ? (otherwise ?? float(0)) : float(number);
    },
  ],
  groupby: [['attribute!', 'default', 'case_sensitive'], groupBy],
  int: [['default', 'base'], toInt],
  items: generator('generator', [], itemPairs),
  join: [['d', 'attribute'], join],
  last: [
    [],
    (value) => {
      const items = reversed(value) ?? fail(`'${typeName(value)}' object is not reversible`);
      return items[0] ?? undefinedValue('No last item, sequence was empty.');
    },
  ],
  length: lengthFilter,
  list: [[], (value) => list([...iterate(value)])],
  max: [['case_sensitive', 'attribute'], (value, args) => extreme(value, args, '>')],
  min: [['case_sensitive', 'attribute'], (value, args) => extreme(value, args, '<')],
  pprint: [[], (value) => str(prettyRepr(value))],
  random: [
    [],
    (value) => {
      const items = [...iterate(value)];
      return items[Math.floor(Math.random() * items.length)] ?? undefinedValue('No random item, sequence was empty.');
    },
  ],
  reverse: [
    [],
    (value) => {
      if (value.type === 'str') return str([...value.value].reverse().join(''), value.safe);
      if (!isIterable(value)) fail('argument must be iterable');
      const items = reversed(value);
      return items ? iterator(reversedKind(value), items) : list([...iterate(value)].reverse());
    },
  ],
  round: [['precision', 'method'], round],
  slice: generator('generator', ['slices!', 'fill_with'], slices),
  sort: [['reverse', 'case_sensitive', 'attribute'], sort],
  sum: [['attribute', 'start'], sum],
  tojson: [['ensure_ascii', 'indent', 'separators', 'sort_keys'], (value, args) => str(toJson(value, jsonStyle(args)))],
  unique: generator('generator', ['case_sensitive', 'attribute'], unique),
};
