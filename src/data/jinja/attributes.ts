import { bind } from './bind.ts';
import { asRatio } from './decimal.ts';
import { formatText } from './format.ts';
import { equals, indexOf, missing, subscript } from './operators.ts';
import { callStringMethod, stringMethods } from './string-methods.ts';
import { pythonRepr } from './text.ts';
import {
  bool,
  type Call,
  type Dict,
  dict,
  fail,
  float,
  func,
  int,
  iterate,
  type Kwargs,
  list,
  none,
  str,
  tuple,
  typeName,
  undefinedValue,
  type Value,
} from './values.ts';

/** A method: what it does with the value that it belongs to. */
type Method<T> = (self: T, args: readonly (Value | undefined)[]) => Value;
type Methods<T> = Readonly<Record<string, readonly [parameters: readonly string[], call: Method<T>]>>;
type Sequence = Extract<Value, { type: 'list' | 'tuple' | 'range' }>;

const sequenceMethods: Methods<Sequence> = {
  count: [['value!'], ({ items }, [value]) => int(items.filter((item) => equals(item, value!)).length)],
  index: [['value!', 'start', 'stop'], (self, [value, start, stop]) => int(position(self, value!, start, stop))],
};

function position({ items }: Sequence, value: Value, start: Value | undefined, stop: Value | undefined): number {
  const clamp = (at: number) => Math.max(0, at < 0 ? at + items.length : at);
  const [from, to] = [start ? clamp(indexOf(start)) : 0, stop ? clamp(indexOf(stop)) : items.length];
  const at = items.findIndex((item, i) => i >= from && i < to && equals(item, value));
  return at < 0 ? fail(`${pythonRepr(value)} is not in list`) : at;
}

const rangeMethods: Methods<Sequence> = {
  count: sequenceMethods.count!,
  index: [['value!'], (self, [value]) => int(position(self, value!, undefined, undefined))],
};

const listMethods: Methods<Extract<Value, { type: 'list' }>> = {
  copy: [[], ({ items }) => list([...items])],
};

/** A dictionary with the same value for each key. */
export const fromKeys = (keys: Value, value: Value = none()): Dict =>
  dict([...iterate(keys)].map((key) => [key, value] as const));

const dictMethods: Methods<Dict> = {
  copy: [[], ({ map }) => dict(map.entries())],
  fromkeys: [['iterable!', 'value'], (_, [keys, value]) => fromKeys(keys!, value)],
  get: [['key!', 'default'], ({ map }, [key, otherwise]) => map.get(key!) ?? otherwise ?? none()],
  items: [[], (self) => ({ type: 'view', kind: 'items', dict: self })],
  keys: [[], (self) => ({ type: 'view', kind: 'keys', dict: self })],
  values: [[], (self) => ({ type: 'view', kind: 'values', dict: self })],
};

type Integer = Extract<Value, { type: 'int' }>;
const bits = (value: bigint) => (value < 0n ? -value : value).toString(2);
const integerMethods: Methods<Integer> = {
  as_integer_ratio: [[], (self) => tuple([self, int(1)])],
  bit_count: [[], ({ value }) => int(bits(value).replaceAll('0', '').length)],
  bit_length: [[], ({ value }) => int(value === 0n ? 0 : bits(value).length)],
  conjugate: [[], (self) => self],
};

type Float = Extract<Value, { type: 'float' }>;
const floatMethods: Methods<Float> = {
  as_integer_ratio: [[], ({ value }) => tuple(asRatio(value).map((part) => int(part)))],
  conjugate: [[], (self) => self],
  is_integer: [[], ({ value }) => bool(Number.isInteger(value))],
};

const bytesMethods: Methods<Extract<Value, { type: 'bytes' }>> = {
  decode: [['encoding', 'errors'], ({ value }) => str(new TextDecoder('utf-8', { fatal: true }).decode(value))],
  hex: [[], ({ value }) => str([...value].map((byte) => byte.toString(16).padStart(2, '0')).join(''))],
};

/** Methods that change a value, which the sandbox does not give. */
const changing: Readonly<Record<string, ReadonlySet<string>>> = {
  list: new Set(['append', 'clear', 'extend', 'insert', 'pop', 'remove', 'reverse', 'sort']),
  dict: new Set(['clear', 'pop', 'popitem', 'setdefault', 'update']),
};

const asMethod = (name: string, self: Value, call: Call): Value => ({
  ...func(name, call),
  className: 'builtin_function_or_method',
  repr: () => `<built-in method ${name} of ${typeName(self)} object at 0x0>`,
});

function methodOf<T extends Value>(methods: Methods<T>, self: T, name: string): Value | undefined {
  if (!Object.hasOwn(methods, name)) return undefined;
  const [parameters, call] = methods[name]!;
  return asMethod(name, self, (args, kwargs: Kwargs) => {
    if (kwargs.size > 0 && self.type !== 'bytes') fail(`${typeName(self)}.${name}() takes no keyword arguments`);
    return call(self, bind(`${typeName(self)}.${name}`, parameters, args, kwargs));
  });
}

/** How `format` looks up attributes and items. */
export const textAccess = {
  attribute: (value: Value, name: string) => getAttribute(value, name),
  item: (value: Value, key: Value) => getItem(value, key),
};

function stringMethod(self: Extract<Value, { type: 'str' }>, name: string): Value | undefined {
  if (name === 'format') {
    return asMethod(name, self, (args, kwargs) =>
      str(formatText(self.value, args, kwargs, textAccess, self.safe ?? false), self.safe),
    );
  }
  if (name === 'format_map') {
    return asMethod(name, self, ([given], kwargs) => {
      if (given?.type !== 'dict' || kwargs.size > 0) return fail('format_map() takes one dictionary');
      const named = new Map(
        given.map.entries().flatMap(([key, value]) => (key.type === 'str' ? [[key.value, value]] : [])),
      );
      return str(formatText(self.value, [], named, textAccess, self.safe ?? false), self.safe);
    });
  }
  if (!Object.hasOwn(stringMethods, name)) return undefined;
  return asMethod(name, self, (args, kwargs) => callStringMethod(name, self, args, kwargs));
}

/** An attribute of a value as Python has it; undefined where there is none. */
function ownAttribute(value: Value, name: string): Value | undefined {
  switch (value.type) {
    case 'str':
      return stringMethod(value, name);
    case 'list':
      return methodOf(sequenceMethods, value, name) ?? methodOf(listMethods, value, name);
    case 'tuple': {
      const at = value.names?.indexOf(name) ?? -1;
      return at >= 0 ? value.items[at] : methodOf(sequenceMethods, value, name);
    }
    case 'range': {
      const at = ['start', 'stop', 'step'].indexOf(name);
      return at >= 0 ? int(value.bounds[at]!) : methodOf(rangeMethods, value, name);
    }
    case 'dict':
      return methodOf(dictMethods, value, name);
    case 'bytes':
      return methodOf(bytesMethods, value, name);
    case 'bool':
    case 'int': {
      const self: Integer = { type: 'int', value: BigInt(value.value) };
      if (name === 'real' || name === 'numerator') return self;
      if (name === 'imag') return int(0);
      return name === 'denominator' ? int(1) : methodOf(integerMethods, self, name);
    }
    case 'float':
      if (name === 'real') return value;
      return name === 'imag' ? float(0) : methodOf(floatMethods, value, name);
    case 'object':
      return value.get?.(name);
    case 'undefined':
      return name.startsWith('__') && name.endsWith('__') ? undefined : fail(value.message);
    default:
      return undefined;
  }
}

const unsafe = (value: Value, name: string): Value =>
  undefinedValue(`access to attribute '${name}' of '${typeName(value)}' object is unsafe.`);
/** Attributes that all objects of Python have, of those that templates try. */
const internals =
  /^__(class|dict|doc|init|init_subclass|subclasshook|new|module|eq|ne|lt|le|gt|ge|hash|repr|str|format|sizeof|reduce|reduce_ex|dir|getattribute|setattr|delattr|len|iter|contains|getitem|setitem|delitem|call|add|mul|mod|rmul|globals|code|closure|defaults|name|qualname|self|func|wrapped|getstate|getnewargs|class_getitem|reversed|ior|or|ror|iadd|imul)__$/;

/** An attribute as the sandbox gives it; undefined where there is none. */
function safeAttribute(value: Value, name: string): Value | undefined {
  if (internals.test(name) || changing[value.type]?.has(name)) return unsafe(value, name);
  const found = ownAttribute(value, name);
  return found && name.startsWith('_') ? unsafe(value, name) : found;
}

/** `value.name`: an attribute, or else an item. */
export const getAttribute = (value: Value, name: string): Value =>
  safeAttribute(value, name) ??
  (value.type === 'object' ? undefined : subscript(value, str(name))) ??
  missing(value, str(name));

/** `value[key]`: an item, or else an attribute. */
export const getItem = (value: Value, key: Value): Value =>
  subscript(value, key) ?? (key.type === 'str' ? safeAttribute(value, key.value) : undefined) ?? missing(value, key);

/** `value | attr(name)`: an attribute, never an item. */
export const attributeOnly = (value: Value, name: string): Value =>
  safeAttribute(value, name) ?? missing(value, str(name));
