import { byOrder, numeric } from './operators.ts';
import { pythonRepr, splitLines } from './text.ts';
import { dict, str, typeName, type Value } from './values.ts';

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
export const prettyRepr = (value: Value): string => lines(withSortedKeys(value), 0, 0, 1);

/** @param after how many characters follow in the last line */
function lines(value: Value, indent: number, after: number, level: number): string {
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
        return name + lines(item, inner + name.length, i === entries.length - 1 ? after + 1 : 1, level + 1);
      });
      return join(parts, '{', '}');
    }
    case 'list':
    case 'tuple': {
      const [open, close] = value.type === 'list' ? ['[', ']'] : ['(', value.items.length === 1 ? ',)' : ')'];
      const parts = value.items.map((item, i) =>
        lines(item, inner, i === value.items.length - 1 ? after + close!.length : 1, level + 1),
      );
      return join(parts, open!, close!);
    }
    case 'str':
      return textLines(value.value, indent, after, level === 1);
    default:
      return text;
  }
}

/** A long text as literals one below the other, cut after lines and after white space. */
function textLines(text: string, start: number, following: number, isOutermost: boolean): string {
  const [indent, after] = isOutermost ? [start + 1, following + 1] : [start, following];
  const width = WIDTH - indent;
  const quoted = (part: string) => pythonRepr(str(part));
  const rows = splitLines(text, true);
  const chunks: string[] = [];
  for (const [i, row] of rows.entries()) {
    const isLast = i === rows.length - 1;
    if (quoted(row).length <= width - (isLast ? after : 0)) {
      chunks.push(quoted(row));
      continue;
    }
    const words = (row.match(/\S*\s*/gu) ?? []).filter((word) => word !== '');
    let current = '';
    for (const [j, word] of words.entries()) {
      const room = width - (isLast && j === words.length - 1 ? after : 0);
      if (quoted(current + word).length > room) {
        if (current !== '') chunks.push(quoted(current));
        current = word;
      } else current += word;
    }
    if (current !== '') chunks.push(quoted(current));
  }
  if (chunks.length === 1) return quoted(text);
  const joined = chunks.join(`\n${' '.repeat(indent)}`);
  return isOutermost ? `(${joined})` : joined;
}
