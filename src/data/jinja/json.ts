import { floatRepr } from './decimal.ts';
import { byOrder } from './operators.ts';
import { allowed, fail, isTrue, typeName, type Value } from './values.ts';

/** How `tojson` writes: the parameters of Python's `json.dumps`. */
export interface JsonStyle {
  readonly ascii: boolean;
  /** What a level is indented by; undefined for everything in one line. */
  readonly indent: string | undefined;
  readonly separators: readonly [item: string, key: string];
  readonly sortKeys: boolean;
}

const short: Readonly<Record<string, string>> = {
  '"': '\\"',
  '\\': '\\\\',
  '\n': '\\n',
  '\r': '\\r',
  '\t': '\\t',
  '\f': '\\f',
  '\b': '\\b',
};
const quoted = (text: string, ascii: boolean): string =>
  `"${text.replaceAll(ascii ? /[^ !#-[\]-~]/g : /["\\\0-\x1f]/g, (c) => short[c] ?? `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`)}"`;

const floatText = (value: number) =>
  Number.isFinite(value) ? floatRepr(value) : Number.isNaN(value) ? 'NaN' : value < 0 ? '-Infinity' : 'Infinity';

function keyText(key: Value): string {
  switch (key.type) {
    case 'str':
      return key.value;
    case 'int':
      return key.value.toString();
    case 'float':
      return floatText(key.value);
    case 'bool':
      return String(key.value);
    case 'none':
      return 'null';
    default:
      return fail(`keys must be str, int, float, bool or None, not ${typeName(key)}`);
  }
}

/** Python's `json.dumps`. @throws JinjaError for what is no data */
export function toJson(value: Value, style: JsonStyle, level = 0): string {
  const enclose = (open: string, close: string, parts: readonly string[]): string => {
    if (parts.length === 0) return open + close;
    if (style.indent === undefined) return open + parts.join(style.separators[0]) + close;
    const line = `\n${style.indent.repeat(level + 1)}`;
    return `${open}${line}${parts.join(style.separators[0] + line)}\n${style.indent.repeat(level)}${close}`;
  };
  switch (value.type) {
    case 'none':
      return 'null';
    case 'bool':
      return String(value.value);
    case 'int':
      return value.value.toString();
    case 'float':
      return floatText(value.value);
    case 'str':
      return quoted(value.value, style.ascii);
    case 'list':
    case 'tuple':
      return enclose(
        '[',
        ']',
        value.items.map((item) => toJson(item, style, level + 1)),
      );
    case 'dict': {
      const entries = value.map.entries();
      if (style.sortKeys) entries.sort(([a], [b]) => byOrder(a, b));
      const parts = entries.map(
        ([key, item]) => quoted(keyText(key), style.ascii) + style.separators[1] + toJson(item, style, level + 1),
      );
      return enclose('{', '}', parts);
    }
    default:
      return fail(`Object of type ${typeName(value)} is not JSON serializable`);
  }
}

/** The style that the arguments of `tojson` ask for: ensure_ascii, indent, separators, sort_keys. */
export function jsonStyle([ascii, indent, separators, sortKeys]: readonly (Value | undefined)[]): JsonStyle {
  const isIndented = indent !== undefined && indent.type !== 'none';
  const asText = (value: Value | undefined) =>
    value?.type === 'str' ? value.value : fail('separators must be two texts');
  let unit: string | undefined;
  if (isIndented) {
    if (indent.type === 'str') unit = indent.value;
    else if (indent.type === 'int' || indent.type === 'bool') unit = ' '.repeat(allowed(Number(indent.value), 10_000));
    else fail(`the indent of tojson must be a number or a text, not ${typeName(indent)}`);
  }
  let pair: readonly [string, string] = [isIndented ? ',' : ', ', ': '];
  if (separators !== undefined && separators.type !== 'none') {
    const items = separators.type === 'tuple' || separators.type === 'list' ? separators.items : [];
    if (items.length !== 2) fail('the separators of tojson must be two');
    pair = [asText(items[0]), asText(items[1])];
  }
  return {
    ascii: ascii !== undefined && isTrue(ascii),
    indent: unit,
    separators: pair,
    sortKeys: sortKeys !== undefined && isTrue(sortKeys),
  };
}
