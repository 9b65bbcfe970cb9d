import { exactNumberText, orderedEntries } from '../exact-json.ts';

/**
 * The values of a template, which are Python's. Each is an object of its own, so that what is known of one (which message it is
 * a part of) can be kept by identity. Integers have any size; texts are indexed by code point where Python does so.
 */
export type Value =
  | { readonly type: 'undefined'; readonly message: string }
  | { readonly type: 'none' }
  | { readonly type: 'bool'; readonly value: boolean }
  | { readonly type: 'int'; readonly value: bigint }
  | { readonly type: 'float'; readonly value: number }
  | Str
  | { readonly type: 'bytes'; readonly value: Uint8Array }
  | List
  | Tuple
  | Dict
  | { readonly type: 'view'; readonly kind: 'keys' | 'values' | 'items'; readonly dict: Dict }
  | Range
  | Iterator
  | Instance;

/** A text; `safe` texts are not escaped again (Markup). */
export interface Str {
  readonly type: 'str';
  readonly value: string;
  readonly safe?: boolean;
}
export interface List {
  readonly type: 'list';
  readonly items: Value[];
}
/** A tuple; a named one has `names` for its items. */
export interface Tuple {
  readonly type: 'tuple';
  readonly items: readonly Value[];
  readonly names?: readonly string[];
}
export interface Dict {
  readonly type: 'dict';
  readonly map: Mapping;
}
export interface Range {
  readonly type: 'range';
  readonly items: readonly Value[];
  readonly bounds: readonly [start: bigint, stop: bigint, step: bigint];
}
/** What can be run through once: it gives its items when they are asked for. `taken` has those that it gave. */
export interface Iterator {
  readonly type: 'iterator';
  readonly kind: string;
  readonly next: () => Value | undefined;
  readonly taken: readonly Value[];
}
export type Kwargs = ReadonlyMap<string, Value>;
export type Call = (args: readonly Value[], kwargs: Kwargs) => Value;
/** A function, a macro, a namespace, a loop: what has attributes or can be called. */
export interface Instance {
  readonly type: 'object';
  readonly className: string;
  readonly repr: () => string;
  readonly get?: (name: string) => Value | undefined;
  readonly set?: (name: string, value: Value) => void;
  readonly call?: Call;
  readonly length?: () => number;
}

/** The values that a value holds; of an iterator, those that it gave. */
export function partsOf(value: Value): readonly Value[] {
  switch (value.type) {
    case 'list':
    case 'tuple':
      return value.items;
    case 'dict':
      return value.map.values();
    case 'view':
      return viewItems(value);
    case 'iterator':
      return value.taken;
    default:
      return [];
  }
}

/** What a template does that Python or its sandbox refuses. */
export class JinjaError extends Error {}
export const fail = (message: string): never => {
  throw new JinjaError(message);
};

/** More characters or items than any template needs, and more than a harmful one may have. */
const MOST = 10_000_000;
/** How often something may be repeated whose length is `size`. @throws JinjaError where the result would be too long */
export const allowed = (count: number, size = 1): number =>
  count * size > MOST ? fail(`the result would be longer than ${MOST} characters or items`) : Math.max(0, count);

export const none = (): Value => ({ type: 'none' });
export const bool = (value: boolean): Value => ({ type: 'bool', value });
export const int = (value: bigint | number): Value => ({ type: 'int', value: BigInt(value) });
export const float = (value: number): Value => ({ type: 'float', value });
export const str = (value: string, safe?: boolean): Str =>
  safe ? { type: 'str', value, safe } : { type: 'str', value };
export const list = (items: Value[]): List => ({ type: 'list', items });
export const tuple = (items: readonly Value[], names?: readonly string[]): Tuple =>
  names ? { type: 'tuple', items, names } : { type: 'tuple', items };
export const undefinedValue = (message: string): Value => ({ type: 'undefined', message });
export const func = (name: string, call: Call): Instance => ({
  type: 'object',
  className: 'function',
  repr: () => `<function ${name} at 0x0>`,
  call,
});

/** An iterator over what a generator gives. */
export function iterator(kind: string, items: Iterable<Value>): Iterator {
  const source = items[Symbol.iterator]();
  const taken: Value[] = [];
  const next = () => {
    const { done, value } = source.next();
    if (!done) taken.push(value);
    return done ? undefined : value;
  };
  return { type: 'iterator', kind, next, taken };
}

/** What Python calls the type of a value. */
export function typeName(value: Value): string {
  switch (value.type) {
    case 'undefined':
      return 'Undefined';
    case 'none':
      return 'NoneType';
    case 'str':
      return value.safe ? 'Markup' : 'str';
    case 'view':
      return `dict_${value.kind}`;
    case 'iterator':
      return value.kind;
    case 'object':
      return value.className;
    default:
      return value.type;
  }
}

/** What makes two keys of a dictionary the same: 1, 1.0 and True are one key. */
function keyOf(key: Value): string {
  switch (key.type) {
    case 'str':
      return `s${key.value}`;
    case 'bool':
      return `n${Number(key.value)}`;
    case 'int':
      return `n${key.value}`;
    case 'float':
      return Number.isInteger(key.value) ? `n${BigInt(key.value)}` : `f${key.value}`;
    case 'none':
    case 'undefined':
      return key.type;
    case 'range':
      return `r${key.items.length}:${key.bounds}`;
    case 'tuple':
      return `t${JSON.stringify(key.items.map(keyOf))}`;
    default:
      return key.type === 'object' || key.type === 'iterator' ? identity(key) : unhashable(key);
  }
}
const identities = new WeakMap<Value, string>();
function identity(value: Value): string {
  const id = identities.get(value) ?? `o${crypto.randomUUID()}`;
  identities.set(value, id);
  return id;
}
const unhashable = (key: Value) => fail(`unhashable type: '${typeName(key)}'`);

/** Whether a value can be a key. */
export function isHashable(value: Value): boolean {
  return value.type === 'tuple' ? value.items.every(isHashable) : !['list', 'dict', 'view'].includes(value.type);
}

/** A dictionary's entries in the order in which their keys came. */
export class Mapping {
  readonly #entries = new Map<string, readonly [key: Value, value: Value]>();

  constructor(entries: Iterable<readonly [Value, Value]> = []) {
    for (const [key, value] of entries) this.set(key, value);
  }

  get size(): number {
    return this.#entries.size;
  }

  get(key: Value): Value | undefined {
    return this.#entries.get(keyOf(key))?.[1];
  }

  getText(key: string): Value | undefined {
    return this.#entries.get(`s${key}`)?.[1];
  }

  has(key: Value): boolean {
    return this.#entries.has(keyOf(key));
  }

  /** A key that is there already stays the one it was. */
  set(key: Value, value: Value): void {
    const id = keyOf(key);
    this.#entries.set(id, [this.#entries.get(id)?.[0] ?? key, value]);
  }

  keys(): Value[] {
    return [...this.#entries.values()].map(([key]) => key);
  }

  values(): Value[] {
    return [...this.#entries.values()].map(([, value]) => value);
  }

  entries(): (readonly [Value, Value])[] {
    return [...this.#entries.values()];
  }
}

export const dict = (entries: Iterable<readonly [Value, Value]> = []): Dict => ({
  type: 'dict',
  map: new Mapping(entries),
});
/** A set of values as Python's `set` tells them apart. */
export const newSet = () => new Mapping();

/** The items of a view of a dictionary. */
export function viewItems({ kind, dict: { map } }: Extract<Value, { type: 'view' }>): Value[] {
  if (kind === 'items') return map.entries().map((entry) => tuple(entry));
  return kind === 'keys' ? map.keys() : map.values();
}

/** The items that Python's `for` gives; undefined for what it cannot loop over. */
export function* iterate(value: Value): Generator<Value> {
  switch (value.type) {
    case 'list':
    case 'tuple':
    case 'range':
      yield* value.items;
      break;
    case 'str':
      for (const character of value.value) yield str(character);
      break;
    case 'dict':
      yield* value.map.keys();
      break;
    case 'view':
      yield* viewItems(value);
      break;
    case 'bytes':
      for (const byte of value.value) yield int(byte);
      break;
    case 'iterator':
      for (let item = value.next(); item !== undefined; item = value.next()) yield item;
      break;
    case 'undefined':
      break;
    default:
      fail(`'${typeName(value)}' object is not iterable`);
  }
}
const iterables = new Set(['list', 'tuple', 'range', 'str', 'dict', 'view', 'bytes', 'iterator', 'undefined']);
export const isIterable = ({ type }: Value): boolean => iterables.has(type);

/** Python's `len`; undefined for what has none. */
export function lengthOf(value: Value): number | undefined {
  switch (value.type) {
    case 'str':
      return [...value.value].length;
    case 'list':
    case 'tuple':
    case 'range':
      return value.items.length;
    case 'dict':
      return value.map.size;
    case 'view':
      return value.dict.map.size;
    case 'bytes':
      return value.value.length;
    case 'undefined':
      return 0;
    case 'object':
      return value.length?.();
    default:
      return undefined;
  }
}

/** Python's `bool`. */
export function isTrue(value: Value): boolean {
  switch (value.type) {
    case 'none':
      return false;
    case 'bool':
      return value.value;
    case 'int':
      return value.value !== 0n;
    case 'float':
      return value.value !== 0;
    case 'str':
      return value.value !== '';
    default:
      return lengthOf(value) !== 0;
  }
}

/**
 * A JavaScript value as a template sees it. Whole numbers are integers, unless they are too large to be exact; numbers that `parseJsonExactly` keeps are what their text says.
 * @throws JinjaError for what is not data
 */
export function toValue(value: unknown): Value {
  switch (typeof value) {
    case 'undefined':
      return undefinedValue('the value is undefined');
    case 'boolean':
      return bool(value);
    case 'bigint':
      return int(value);
    case 'number':
      return Number.isSafeInteger(value) ? int(value) : float(value);
    case 'string':
      return str(value);
    case 'object': {
      if (value === null) return none();
      if (Array.isArray(value)) return list(value.map(toValue));
      const number = exactNumberText(value);
      if (number !== undefined) return /[.eE]/.test(number) ? float(Number(number)) : int(BigInt(number));
      return dict(
        orderedEntries(value).flatMap(([key, item]) =>
          item === undefined ? [] : [[str(key), toValue(item)] as [Value, Value]],
        ),
      );
    }
    default:
      return fail(`a ${typeof value} cannot be given to a template`);
  }
}

/** Where names are looked up: an inner one sees those of the outer one. */
export class Scope {
  readonly #names = new Map<string, Value>();
  readonly parent: Scope | undefined;

  constructor(parent?: Scope) {
    this.parent = parent;
  }

  lookup(name: string): Value | undefined {
    return this.#names.get(name) ?? this.parent?.lookup(name);
  }

  set(name: string, value: Value): void {
    this.#names.set(name, value);
  }
}
