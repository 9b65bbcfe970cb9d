import { byOrder, numeric } from './operators.ts';
import { pythonRepr } from './text.ts';
import { dict, fail, typeName, type Value } from './values.ts';

const WIDTH = 80;

/** Keys that have no order are ordered by their type. */
function keyOrder(a: Value, b: Value): number {
  const isOrdered = (numeric(a) !== undefined && numeric(b) !== undefined) || (a.type === b.type && a.type !== 'none');
  return isOrdered ? byOrder(a, b) : typeName(a) < typeName(b) ? -1 : 1;
}

/** A value with the keys of its dictionaries in order. */
function withSortedKeys(value: Value): Value {
  if (value.type === 'dict') {
    const entries = value.map.entries().map(([key, item]) => [key, withSortedKeys(item)] as const);
    return dict(entries.sort(([a], [b]) => keyOrder(a, b)));
  }
  return value.type === 'list' || value.type === 'tuple' ? { ...value, items: value.items.map(withSortedKeys) } : value;
}

/** Python's `pprint.pformat`: in one line where that has room, else an item in each line. */
export const prettyRepr = (value: Value): string => lines(withSortedKeys(value), 0, 0);

function lines(value: Value, indent: number, after: number): string {
  const text = pythonRepr(value);
  if (text.length <= WIDTH - indent - after) return text;
  const inner = indent + 1;
  const join = (parts: readonly string[], open: string, close: string) =>
    open + parts.join(`,\n${' '.repeat(inner)}`) + close;
  switch (value.type) {
    case 'dict': {
      const entries = value.map.entries();
      const parts = entries.map(([key, item], i) => {
        const name = `${pythonRepr(key)}: `;
        return name + lines(item, inner + name.length, i === entries.length - 1 ? after + 1 : 1);
      });
      return join(parts, '{', '}');
    }
    case 'list':
    case 'tuple': {
      const [open, close] = value.type === 'list' ? ['[', ']'] : ['(', value.items.length === 1 ? ',)' : ')'];
      const parts = value.items.map((item, i) =>
        lines(item, inner, i === value.items.length - 1 ? after + close!.length : 1),
      );
      return join(parts, open!, close!);
    }
    case 'str':
      return fail('pprint of texts that are longer than a line is not supported');
    default:
      return text;
  }
}
