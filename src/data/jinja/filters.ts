import { getter, listFilters } from './list-filters.ts';
import { applyTest } from './tests.ts';
import { bindFilter, type Filter, formatFilter, textFilters } from './text-filters.ts';
import { fail, isTrue, iterate, iterator, type Kwargs, type Value } from './values.ts';

const filters: Readonly<Record<string, Filter>> = { ...textFilters, ...listFilters };
/** Filters that take other filters or tests, or any arguments. */
const others = new Set(['format', 'map', 'select', 'reject', 'selectattr', 'rejectattr']);

export const hasFilter = (name: string): boolean => Object.hasOwn(filters, name) || others.has(name);

/** `value | name(…)`; `inner` applies the filters that `map` is given. */
export type ApplyFilter = (name: string, value: Value, args: readonly Value[], kwargs: Kwargs) => Value;

export function applyFilter(
  name: string,
  value: Value,
  args: readonly Value[],
  kwargs: Kwargs,
  inner: ApplyFilter,
): Value {
  switch (name) {
    case 'format':
      return formatFilter(value, args, kwargs);
    case 'map':
      return iterator('generator', mapped(value, args, kwargs, inner));
    case 'select':
    case 'reject':
    case 'selectattr':
    case 'rejectattr':
      return iterator('generator', selected(name, value, args, kwargs));
  }
  if (!Object.hasOwn(filters, name)) return fail(`no filter named '${name}'`);
  const filter = filters[name]!;
  return filter[1](value, bindFilter(name, filter, args, kwargs));
}

function* mapped(value: Value, args: readonly Value[], kwargs: Kwargs, inner: ApplyFilter): Generator<Value> {
  if (!isTrue(value)) return;
  const [name, ...more] = args;
  let apply: (item: Value) => Value;
  if (name === undefined && kwargs.has('attribute')) {
    for (const key of kwargs.keys()) {
      if (key !== 'attribute' && key !== 'default') fail(`Unexpected keyword argument '${key}'`);
    }
    apply = getter(kwargs.get('attribute'), kwargs.get('default'));
  } else if (name === undefined) return fail('map requires a filter argument');
  else apply = (item) => inner(nameOf(name), item, more, kwargs);
  for (const item of iterate(value)) yield apply(item);
}

const nameOf = (value: Value): string =>
  value.type === 'str' ? value.value : fail('the name of a filter or test must be a text');

function* selected(name: string, value: Value, args: readonly Value[], kwargs: Kwargs): Generator<Value> {
  if (!isTrue(value)) return;
  const isByAttribute = name.endsWith('attr');
  const wanted = name.startsWith('select');
  if (isByAttribute && args.length === 0) fail('Missing parameter for attribute name');
  const get = isByAttribute ? getter(args[0]) : (item: Value) => item;
  const [test, ...more] = isByAttribute ? args.slice(1) : args;
  const check = (item: Value) =>
    test === undefined ? isTrue(item) : applyTest(nameOf(test), item, more, kwargs, hasFilter);
  for (const item of iterate(value)) if (check(get(item)) === wanted) yield item;
}
