import { bind } from './bind.ts';
import { binary, contains, equals, numeric, ordered } from './operators.ts';
import { stringMethods } from './string-methods.ts';
import { pythonStr } from './text.ts';
import { fail, int, isHashable, isIterable, isTrue, type Kwargs, lengthOf, typeName, type Value } from './values.ts';

type Test = readonly [
  parameters: readonly string[],
  check: (value: Value, args: readonly (Value | undefined)[]) => boolean,
];

/** Python's `is`: one object, or what Python has only one of. */
function isSame(a: Value, b: Value): boolean {
  if (a === b) return true;
  if (a.type !== b.type) return false;
  switch (a.type) {
    case 'none':
      return true;
    case 'bool':
    case 'str':
      return a.value === (b as typeof a).value;
    case 'int':
      return a.value === (b as typeof a).value;
    case 'tuple':
      return a.items.length === 0 && (b as typeof a).items.length === 0;
    default:
      return false;
  }
}

const is = (check: (value: Value) => boolean): Test => [[], check];
const method = (name: string): Test => is((value) => isTrue(stringMethods[name]!.call(pythonStr(value), [])));
const comparison = (check: (a: Value, b: Value) => boolean): Test => [['other!'], (a, [b]) => check(a, b!)];
const order = (operator: string) => comparison((a, b) => ordered(operator, a, b));
const equal = comparison(equals);
const unequal = comparison((a, b) => !equals(a, b));
const remainder = (value: Value, by: Value) => binary('%', value, by);
const sized = new Set(['str', 'list', 'tuple', 'dict', 'range', 'bytes', 'undefined']);

const tests: Readonly<Record<string, Test>> = {
  boolean: is(({ type }) => type === 'bool'),
  callable: is((value) => value.type === 'undefined' || (value.type === 'object' && value.call !== undefined)),
  defined: is(({ type }) => type !== 'undefined'),
  divisibleby: [['num!'], (value, [by]) => equals(remainder(value, by!), int(0))],
  escaped: is((value) => value.type === 'str' && value.safe === true),
  even: is((value) => equals(remainder(value, int(2)), int(0))),
  false: is((value) => value.type === 'bool' && !value.value),
  float: is(({ type }) => type === 'float'),
  in: [['seq!'], (value, [container]) => contains(container!, value)],
  integer: is(({ type }) => type === 'int'),
  iterable: is(isIterable),
  lower: method('islower'),
  mapping: is(({ type }) => type === 'dict'),
  none: is(({ type }) => type === 'none'),
  number: is((value) => numeric(value) !== undefined),
  odd: is((value) => equals(remainder(value, int(2)), int(1))),
  sameas: comparison(isSame),
  sequence: is((value) => sized.has(value.type) && lengthOf(value) !== undefined),
  string: is(({ type }) => type === 'str'),
  true: is((value) => value.type === 'bool' && value.value),
  undefined: is(({ type }) => type === 'undefined'),
  upper: method('isupper'),
  '==': equal,
  eq: equal,
  equalto: equal,
  '!=': unequal,
  ne: unequal,
  '>': order('>'),
  gt: order('>'),
  greaterthan: order('>'),
  '>=': order('>='),
  ge: order('>='),
  '<': order('<'),
  lt: order('<'),
  lessthan: order('<'),
  '<=': order('<='),
  le: order('<='),
};
const existence = new Set(['filter', 'test']);

export const hasTest = (name: string): boolean => Object.hasOwn(tests, name) || existence.has(name);

/** `value is name(…)`. @param hasFilter whether there is a filter of a name */
export function applyTest(
  name: string,
  value: Value,
  args: readonly Value[],
  kwargs: Kwargs,
  hasFilter: (name: string) => boolean,
): boolean {
  if (existence.has(name)) {
    bind(name, [], args, kwargs);
    if (!isHashable(value)) fail(`unhashable type: '${typeName(value)}'`);
    return value.type === 'str' && (name === 'filter' ? hasFilter : hasTest)(value.value);
  }
  if (!Object.hasOwn(tests, name)) return fail(`no test named '${name}'`);
  const [parameters, check] = tests[name]!;
  return check(value, bind(name, parameters, args, kwargs));
}
