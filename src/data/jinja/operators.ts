import { formatPercent } from './percent.ts';
import { escapeHtml, pythonRepr, pythonStr } from './text.ts';
import {
  allowed,
  fail,
  float,
  int,
  isHashable,
  isIterable,
  iterate,
  list,
  str,
  tuple,
  typeName,
  undefinedValue,
  type Value,
} from './values.ts';

/** A number as an integer or a float; booleans are integers. Undefined for what is no number. */
export function numeric(value: Value): bigint | number | undefined {
  if (value.type === 'int' || value.type === 'float') return value.value;
  return value.type === 'bool' ? BigInt(value.value) : undefined;
}

/** A value as an index. @throws JinjaError for what is no integer */
export function indexOf(value: Value): number {
  const number = numeric(value);
  return typeof number === 'bigint'
    ? Number(number)
    : fail(`'${typeName(value)}' object cannot be interpreted as an integer`);
}

/** @throws JinjaError where a value that is used is undefined */
export const requireDefined = (...values: readonly Value[]): void => {
  for (const value of values) if (value.type === 'undefined') fail(value.message);
};

const unsupported = (operator: string, a: Value, b: Value): never =>
  fail(`unsupported operand type(s) for ${operator}: '${typeName(a)}' and '${typeName(b)}'`);

/** `left operator right`. */
export function binary(operator: string, left: Value, right: Value): Value {
  if (operator === '%' && left.type === 'str') {
    return str(formatPercent(left.value, right, left.safe ?? false), left.safe);
  }
  requireDefined(left, right);
  const [a, b] = [numeric(left), numeric(right)];
  if (a !== undefined && b !== undefined) {
    return typeof a === 'bigint' && typeof b === 'bigint'
      ? ofIntegers(operator, a, b)
      : ofFloats(operator, Number(a), Number(b));
  }
  if (operator === '+') return joined(left, right);
  if (operator === '*') {
    if (typeof b === 'bigint') return repeated(left, right, b);
    if (typeof a === 'bigint') return repeated(right, left, a);
  }
  return unsupported(operator, left, right);
}

function joined(left: Value, right: Value): Value {
  if (left.type === 'str' && right.type === 'str') {
    return left.safe || right.safe ? str(escapeHtml(left) + escapeHtml(right), true) : str(left.value + right.value);
  }
  if (left.type === 'list' && right.type === 'list') return list([...left.items, ...right.items]);
  if (left.type === 'tuple' && right.type === 'tuple') return tuple([...left.items, ...right.items]);
  if (left.type === 'str') return fail(`can only concatenate str (not "${typeName(right)}") to str`);
  return unsupported('+', left, right);
}

function repeated(value: Value, times: Value, count: bigint): Value {
  const size =
    value.type === 'str'
      ? value.value.length
      : value.type === 'list' || value.type === 'tuple'
        ? value.items.length
        : 0;
  const n = allowed(Number(count), Math.max(1, size));
  if (value.type === 'str') return str(value.value.repeat(n), value.safe);
  if (value.type === 'list') return list(Array.from({ length: n }, () => value.items).flat());
  if (value.type === 'tuple') return tuple(Array.from({ length: n }, () => value.items).flat());
  return unsupported('*', value, times);
}

function ofIntegers(operator: string, a: bigint, b: bigint): Value {
  switch (operator) {
    case '+':
      return int(a + b);
    case '-':
      return int(a - b);
    case '*':
      return int(a * b);
    case '/':
      return b === 0n ? fail('division by zero') : float(divided(a, b));
    case '//':
      return b === 0n ? fail('integer division or modulo by zero') : int((a - modulo(a, b)) / b);
    case '%':
      return b === 0n ? fail('integer modulo by zero') : int(modulo(a, b));
  }
  if (b < 0n) return ofFloats('**', Number(a), Number(b));
  const bits = BigInt((a < 0n ? -a : a).toString(2).length) * b;
  return bits > 1_000_000n ? fail('the power is too large') : int(a ** b);
}

const modulo = (a: bigint, b: bigint): bigint => {
  const rest = a % b;
  return rest !== 0n && rest < 0n !== b < 0n ? rest + b : rest;
};

/** a / b, rounded once also where they are larger than a float's digits. */
function divided(a: bigint, b: bigint): number {
  const [x, y] = [Number(a), Number(b)];
  if (Number.isSafeInteger(x) && Number.isSafeInteger(y)) return x / y;
  const sign = a < 0n === b < 0n ? 1 : -1;
  const [n, d] = [a < 0n ? -a : a, b < 0n ? -b : b];
  const shift = Math.max(0, 66 - (n.toString(2).length - d.toString(2).length));
  const scaled = (n << BigInt(shift)) / d;
  const sticky = (n << BigInt(shift)) % d === 0n ? 0n : 1n;
  const quotient = Number((scaled << 1n) | sticky) / 2 ** (shift + 1);
  return Number.isFinite(quotient) ? sign * quotient : fail('integer division result too large for a float');
}

function ofFloats(operator: string, a: number, b: number): Value {
  if ((operator === '/' || operator === '//' || operator === '%') && b === 0) return fail('float division by zero');
  switch (operator) {
    case '+':
      return float(a + b);
    case '-':
      return float(a - b);
    case '*':
      return float(a * b);
    case '/':
      return float(a / b);
    case '%':
      return float(floatModulo(a, b));
    case '//': {
      const rest = floatModulo(a, b);
      const quotient = (a - rest) / b;
      const whole = Math.floor(quotient);
      return float(
        quotient === 0 ? (a / b < 0 || Object.is(a / b, -0) ? -0 : 0) : quotient - whole > 0.5 ? whole + 1 : whole,
      );
    }
  }
  if (a === 0 && b < 0) return fail('0.0 cannot be raised to a negative power');
  if (a < 0 && !Number.isInteger(b) && Number.isFinite(b)) return fail('complex numbers are not supported');
  const power = a === 1 || b === 0 ? 1 : a === -1 && !Number.isFinite(b) ? 1 : a ** b;
  return !Number.isFinite(power) && Number.isFinite(a) && Number.isFinite(b)
    ? fail('Numerical result out of range')
    : float(power);
}

/** The remainder with the sign of the divisor. */
function floatModulo(a: number, b: number): number {
  const rest = a % b;
  if (rest !== 0) return rest < 0 !== b < 0 ? rest + b : rest;
  return b < 0 ? -0 : 0;
}

/** `-value` and `+value`. */
export function signed(value: Value, negative: boolean): Value {
  requireDefined(value);
  const number = numeric(value);
  if (number === undefined) return fail(`bad operand type for unary ${negative ? '-' : '+'}: '${typeName(value)}'`);
  return typeof number === 'bigint' ? int(negative ? -number : number) : float(negative ? -number : number);
}

/** Python's `==`. */
export function equals(a: Value, b: Value): boolean {
  if (a === b) return !(a.type === 'float' && Number.isNaN(a.value));
  const [x, y] = [numeric(a), numeric(b)];
  // An integer and a float are compared by their exact values, as < and > do. Nothing is equal to NaN.
  if (x !== undefined && y !== undefined) return x <= y && x >= y;
  if (a.type !== b.type) return false;
  switch (a.type) {
    case 'none':
    case 'undefined':
      return true;
    case 'str':
      return a.value === (b as typeof a).value;
    case 'list':
    case 'tuple':
    case 'range': {
      const { items } = b as typeof a;
      return a.items.length === items.length && a.items.every((item, i) => equals(item, items[i]!));
    }
    case 'dict': {
      const { map } = b as typeof a;
      return (
        a.map.size === map.size &&
        a.map.entries().every(([key, item]) => {
          const other = map.get(key);
          return other !== undefined && equals(item, other);
        })
      );
    }
    case 'view': {
      const other = b as typeof a;
      return a.kind !== 'values' && a.kind === other.kind && equals(a.dict, other.dict);
    }
    case 'bytes':
      return pythonRepr(a) === pythonRepr(b);
    default:
      return false;
  }
}

/** Below 0, 0 or above 0, as code points are ordered. */
function compareText(a: string, b: string): number {
  if (a === b) return 0;
  const [x, y] = [[...a], [...b]];
  for (let i = 0; i < Math.min(x.length, y.length); i++) {
    const difference = x[i]!.codePointAt(0)! - y[i]!.codePointAt(0)!;
    if (difference !== 0) return difference;
  }
  return x.length - y.length;
}

/** `a < b`, `a <= b`, `a > b` or `a >= b`. @throws JinjaError for what has no order */
export function ordered(operator: string, a: Value, b: Value): boolean {
  requireDefined(a, b);
  const is = (difference: number) =>
    operator === '<'
      ? difference < 0
      : operator === '<='
        ? difference <= 0
        : operator === '>'
          ? difference > 0
          : difference >= 0;
  const [x, y] = [numeric(a), numeric(b)];
  if (x !== undefined && y !== undefined) {
    return operator === '<' ? x < y : operator === '<=' ? x <= y : operator === '>' ? x > y : x >= y;
  }
  if (a.type === 'str' && b.type === 'str') return is(compareText(a.value, b.value));
  if ((a.type === 'list' && b.type === 'list') || (a.type === 'tuple' && b.type === 'tuple')) {
    const at = a.items.findIndex((item, i) => i >= b.items.length || !equals(item, b.items[i]!));
    if (at < 0 || at >= b.items.length) return is(a.items.length - b.items.length);
    return ordered(operator, a.items[at]!, b.items[at]!);
  }
  return fail(`'${operator}' not supported between instances of '${typeName(a)}' and '${typeName(b)}'`);
}

/** `item in container`. */
export function contains(container: Value, item: Value): boolean {
  switch (container.type) {
    case 'str':
      if (item.type !== 'str') fail(`'in <string>' requires string as left operand, not ${typeName(item)}`);
      return container.value.includes(pythonStr(item));
    case 'dict':
      return container.map.has(item);
    case 'view':
      if (container.kind === 'keys') return container.dict.map.has(item);
  }
  if (!isIterable(container)) fail(`argument of type '${typeName(container)}' is not iterable`);
  for (const other of iterate(container)) if (equals(other, item)) return true;
  return false;
}

/** `left operator right` of a comparison. */
export function compared(operator: string, left: Value, right: Value): boolean {
  switch (operator) {
    case '==':
      return equals(left, right);
    case '!=':
      return !equals(left, right);
    case 'in':
      return contains(right, left);
    case 'not in':
      return !contains(right, left);
    default:
      return ordered(operator, left, right);
  }
}

/** `container[key]`; undefined where Python raises a TypeError, an IndexError or a KeyError. */
export function subscript(container: Value, key: Value): Value | undefined {
  if (container.type === 'undefined') return fail(container.message);
  if (container.type === 'dict') return isHashable(key) ? container.map.get(key) : undefined;
  const at = numeric(key);
  if (typeof at !== 'bigint') return undefined;
  const item = <T>(items: ArrayLike<T>): T | undefined =>
    items[Number(at) < 0 ? Number(at) + items.length : Number(at)];
  switch (container.type) {
    case 'list':
    case 'tuple':
    case 'range':
      return item(container.items);
    case 'bytes': {
      const byte = item(container.value);
      return byte === undefined ? undefined : int(byte);
    }
    case 'str': {
      const character = item([...container.value]);
      return character === undefined ? undefined : str(character, container.safe);
    }
    default:
      return undefined;
  }
}

/** Whether a value has parts, which these bounds can tell. */
export const isSliceable = (value: Value, bounds: readonly (Value | undefined)[]): boolean =>
  ['list', 'tuple', 'str', 'bytes', 'range'].includes(value.type) &&
  bounds.every((bound) => !bound || bound.type === 'none' || typeof numeric(bound) === 'bigint');

/** `value[start:stop:step]`. */
export function sliced(value: Value, bounds: readonly (Value | undefined)[]): Value {
  requireDefined(value);
  const [start, stop, step] = bounds.map((bound) => {
    if (bound === undefined || bound.type === 'none') return undefined;
    requireDefined(bound);
    return typeof numeric(bound) === 'bigint'
      ? indexOf(bound)
      : fail('slice indices must be integers or None or have an __index__ method');
  });
  if (step === 0) fail('slice step cannot be zero');
  const pick = <T>(items: ArrayLike<T>): T[] =>
    slicePositions(items.length, start, stop, step ?? 1).map((i) => items[i]!);
  switch (value.type) {
    case 'list':
      return list(pick(value.items));
    case 'tuple':
      return tuple(pick(value.items));
    case 'str':
      return str(pick([...value.value]).join(''), value.safe);
    case 'bytes':
      return { type: 'bytes', value: Uint8Array.from(pick(value.value)) };
    case 'range': {
      const items = pick(value.items);
      const [from, , by] = value.bounds;
      const [low, high] = rangeBounds(value.items.length, start, stop, step ?? 1);
      const at = (position: number) => from + BigInt(position) * by;
      return { type: 'range', items, bounds: [at(low), at(high), by * BigInt(step ?? 1)] };
    }
    case 'dict':
      return fail("unhashable type: 'slice'");
    default:
      return fail(`'${typeName(value)}' object is not subscriptable`);
  }
}

function rangeBounds(
  length: number,
  start: number | undefined,
  stop: number | undefined,
  step: number,
): [number, number] {
  const clamp = (at: number, low: number, high: number) => Math.min(Math.max(at < 0 ? at + length : at, low), high);
  return step > 0
    ? [start === undefined ? 0 : clamp(start, 0, length), stop === undefined ? length : clamp(stop, 0, length)]
    : [
        start === undefined ? length - 1 : clamp(start, -1, length - 1),
        stop === undefined ? -1 : clamp(stop, -1, length - 1),
      ];
}

function slicePositions(length: number, start: number | undefined, stop: number | undefined, step: number): number[] {
  const [from, to] = rangeBounds(length, start, stop, step);
  const positions: number[] = [];
  for (let at = from; step > 0 ? at < to : at > to; at += step) positions.push(at);
  return positions;
}

/** What an item or attribute that is not there is: undefined, with the reason for where it is used. */
export const missing = (container: Value, key: Value): Value =>
  undefinedValue(
    key.type === 'str'
      ? `'${typeName(container)} object' has no attribute ${pythonRepr(key)}`
      : `${typeName(container)} object has no element ${pythonRepr(key)}`,
  );

/** Python's order of values, for sorting. */
export const byOrder = (a: Value, b: Value): number => (ordered('<', a, b) ? -1 : ordered('<', b, a) ? 1 : 0);
