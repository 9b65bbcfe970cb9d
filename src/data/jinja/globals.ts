import { fromKeys } from './attributes.ts';
import { bind } from './bind.ts';
import { indexOf } from './operators.ts';
import { pythonRepr, pythonStr } from './text.ts';
import { strftime } from './time.ts';
import {
  type Call,
  type Dict,
  dict,
  fail,
  func,
  type Instance,
  int,
  isIterable,
  iterate,
  type Kwargs,
  none,
  str,
  typeName,
  type Value,
} from './values.ts';

/** The longest range that the sandbox makes. */
const MOST_NUMBERS = 100_000n;

function range(args: readonly Value[], kwargs: Kwargs): Value {
  if (kwargs.size > 0) fail('range() takes no keyword arguments');
  if (args.length < 1 || args.length > 3) fail(`range expected 1 to 3 arguments, got ${args.length}`);
  const numbers = args.map((arg) => BigInt(indexOf(arg)));
  const [start, stop, step] =
    numbers.length === 1 ? [0n, numbers[0]!, 1n] : [numbers[0]!, numbers[1]!, numbers[2] ?? 1n];
  if (step === 0n) fail('range() arg 3 must not be zero');
  const count = step > 0n ? (stop - start + step - 1n) / step : (start - stop - step - 1n) / -step;
  if (count > MOST_NUMBERS) fail(`Range too big. The sandbox blocks ranges larger than MAX_RANGE (${MOST_NUMBERS}).`);
  const items = Array.from({ length: Math.max(0, Number(count)) }, (_, i) => int(start + BigInt(i) * step));
  return { type: 'range', items, bounds: [start, stop, step] };
}

/** `dict(…)`: of a dictionary or of pairs, and of names. */
function makeDict([source, ...more]: readonly Value[], kwargs: Kwargs): Dict {
  if (more.length > 0) fail(`dict expected at most 1 argument, got ${more.length + 1}`);
  const made = dict(source?.type === 'dict' ? source.map.entries() : []);
  if (source && source.type !== 'dict') {
    if (!isIterable(source)) fail(`'${typeName(source)}' object is not iterable`);
    for (const entry of iterate(source)) {
      const pair = [...iterate(entry)];
      if (pair.length !== 2) fail(`dictionary update sequence element has length ${pair.length}; 2 is required`);
      made.map.set(pair[0]!, pair[1]!);
    }
  }
  for (const [name, value] of kwargs) made.map.set(str(name), value);
  return made;
}

/** An object whose attributes a template sets. */
function namespace(args: readonly Value[], kwargs: Kwargs): Value {
  const attributes = makeDict(args, kwargs);
  const checkName = (name: string) =>
    name.startsWith('_') &&
    fail(`Chat templates cannot store underscore-prefixed attributes on a namespace, but got '${name}'`);
  for (const key of attributes.map.keys()) if (key.type === 'str') checkName(key.value);
  return {
    type: 'object',
    className: 'TemplateNamespace',
    repr: () => `<Namespace ${pythonRepr(attributes)}>`,
    get: (name) => attributes.map.getText(name),
    set: (name, value) => {
      checkName(name);
      attributes.map.set(str(name), value);
    },
  };
}

function cycler(items: readonly Value[], kwargs: Kwargs): Value {
  if (kwargs.size > 0) fail('cycler() takes no keyword arguments');
  if (items.length === 0) fail('at least one item has to be provided');
  let position = 0;
  const next = () => {
    const item = items[position]!;
    position = (position + 1) % items.length;
    return item;
  };
  const members: Readonly<Record<string, () => Value>> = {
    current: () => items[position]!,
    pos: () => int(position),
    next: () => func('next', next),
    reset: () =>
      func('reset', () => {
        position = 0;
        return none();
      }),
  };
  const get = (name: string) => (Object.hasOwn(members, name) ? members[name]!() : undefined);
  return { type: 'object', className: 'Cycler', repr: () => '<Cycler object>', get };
}

function joiner(args: readonly Value[], kwargs: Kwargs): Value {
  const [separator = str(', ')] = bind('joiner', ['sep'], args, kwargs);
  let used = false;
  const call: Call = () => {
    const text = used ? separator : str('');
    used = true;
    return text;
  };
  return { type: 'object', className: 'Joiner', repr: () => '<Joiner object>', call };
}

const dictionaries: Instance = {
  ...func('dict', makeDict),
  className: 'TemplateDict',
  get: (name) =>
    name === 'fromkeys'
      ? func(name, ([keys, value]) => fromKeys(keys ?? fail('fromkeys expected at least 1 argument'), value))
      : undefined,
};

const raise = (args: readonly Value[], kwargs: Kwargs): Value =>
  fail(pythonStr(bind('raise_exception', ['message!'], args, kwargs)[0]!));

/** The functions that every template has. */
export const globals: ReadonlyMap<string, Value> = new Map(
  Object.entries({
    range: func('range', range),
    dict: dictionaries,
    namespace: func('namespace', namespace),
    cycler: func('cycler', cycler),
    joiner: func('joiner', joiner),
    lipsum: func('lipsum', () => fail('lipsum() is not supported')),
    raise_exception: func('raise_exception', raise),
    strftime_now: func('strftime_now', (args, kwargs) => {
      const [format] = bind('strftime_now', ['format!'], args, kwargs);
      return format!.type === 'str' ? str(strftime(format!.value)) : fail('strftime() argument 1 must be str');
    }),
  }),
);
