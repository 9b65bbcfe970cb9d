import { floatDigits, grouped, integerDigits } from './number-format.ts';
import { ascii, type Part } from './percent.ts';

export type { Part } from './percent.ts';

import { numeric } from './operators.ts';
import { escapeHtml, pythonRepr, pythonStr } from './text.ts';
import { allowed, fail, type Kwargs, str, typeName, type Value } from './values.ts';

/** How attributes and items are looked up in `{name.attribute[item]}`. */
export interface Access {
  readonly attribute: (value: Value, name: string) => Value;
  readonly item: (value: Value, key: Value) => Value;
}

/** Python's `text.format(…)`; `safe` texts escape what they are given. */
export const formatText = (...given: Parameters<typeof formatParts>): string =>
  formatParts(...given)
    .map((part) => part.text)
    .join('');

/** The parts of `text.format(…)`. */
export function formatParts(
  text: string,
  args: readonly Value[],
  kwargs: Kwargs,
  access: Access,
  safe: boolean,
): Part[] {
  let automatic = 0;
  const field = (name: string): Value => {
    const [, first = '', path = ''] = /^([^.[]*)([\s\S]*)$/.exec(name)!;
    if (first === '' && automatic < 0)
      fail('cannot switch from manual field specification to automatic field numbering');
    let value: Value | undefined;
    if (first === '') value = args[automatic++];
    else if (/^\d+$/.test(first)) {
      if (automatic > 0) fail('cannot switch from automatic field numbering to manual field specification');
      automatic = -1;
      value = args[Number(first)];
    } else value = kwargs.get(first) ?? fail(`KeyError: '${first}'`);
    if (value === undefined) return fail('Replacement index out of range for positional args tuple');
    for (const [, attribute, item] of path.matchAll(/\.([^.[]*)|\[([^\]]*)\]/g)) {
      value =
        attribute !== undefined
          ? access.attribute(value, attribute)
          : access.item(value, /^\d+$/.test(item!) ? { type: 'int', value: BigInt(item!) } : str(item!));
    }
    return value;
  };
  const expand = (source: string, depth: number): Part[] => {
    if (depth < 0) return fail('Max string recursion exceeded');
    const parts: Part[] = [];
    for (let at = 0; at < source.length; ) {
      const c = source[at]!;
      if (c !== '{' && c !== '}') {
        parts.push({ text: c });
        at++;
      } else if (source[at + 1] === c) {
        parts.push({ text: c });
        at += 2;
      } else if (c === '}') return fail("Single '}' encountered in format string");
      else {
        const end = closingBrace(source, at);
        const inside = source.slice(at + 1, end);
        const [, name = '', conversion, spec = ''] =
          /^((?:[^!:[]|\[[^\]]*\])*)(?:!([^:]*))?(?::([\s\S]*))?$/.exec(inside) ??
          fail("expected ':' after conversion specifier");
        const value = field(name);
        const style = expand(spec, depth - 1).map((part) => part.text);
        parts.push({ text: formatted(value, conversion, style.join(''), safe), of: value });
        at = end + 1;
      }
    }
    return parts;
  };
  return expand(text, 2);
}

function closingBrace(text: string, open: number): number {
  let depth = 0;
  for (let at = open; at < text.length; at++) {
    if (text[at] === '{') depth++;
    else if (text[at] === '}' && --depth === 0) return at;
  }
  return fail("expected '}' before end of string");
}

function formatted(value: Value, conversion: string | undefined, spec: string, safe: boolean): string {
  let given = value;
  if (conversion === 'r') given = str(pythonRepr(value));
  else if (conversion === 's') given = str(pythonStr(value));
  else if (conversion === 'a') given = str(ascii(pythonRepr(value)));
  else if (conversion !== undefined) fail(`Unknown conversion specifier ${conversion}`);
  if (safe)
    return given.type === 'str' && given.safe && spec === '' ? given.value : escapeHtml(str(formatSpec(given, spec)));
  return formatSpec(given, spec);
}

const SPEC = /^(?:(.)?([<>=^]))?([-+ ])?(z)?(#)?(0)?(\d+)?([,_])?(?:\.(\d+))?([a-zA-Z%])?$/su;

/** Python's `format(value, spec)`. */
export function formatSpec(value: Value, spec: string): string {
  if (spec === '') return pythonStr(value);
  const parts = SPEC.exec(spec) ?? fail(`Invalid format specifier '${spec}'`);
  const [, fill, align, sign = '-', , alternate, zero, width, grouping, precision, kind = ''] = parts;
  const number = numeric(value);
  const isText = value.type === 'str';
  if (!isText && number === undefined) return fail(`unsupported format string passed to ${typeName(value)}.__format__`);
  function padded(body: string, side: string, signText = ''): string {
    const room = allowed(Number(width ?? 0) - [...(signText + body)].length);
    const pad = (fill ?? (zero ? '0' : ' ')).repeat(room);
    const where = align ?? (zero && !isText ? '=' : side === 'l' ? '<' : '>');
    if (where === '=') return signText + pad + body;
    if (where === '<') return signText + body + pad;
    if (where === '>') return pad + signText + body;
    const [left, right] = [Math.floor(room / 2), Math.ceil(room / 2)];
    const c = fill ?? (zero ? '0' : ' ');
    return c.repeat(left) + signText + body + c.repeat(right);
  }
  if (isText) {
    if (kind !== '' && kind !== 's') return fail(`Unknown format code '${kind}' for object of type 'str'`);
    if (parts[3]) return fail('Sign not allowed in string format specifier');
    if (align === '=') return fail("'=' alignment not allowed in string format specifier");
    if (grouping) return fail(`Cannot specify '${grouping}' with 's'.`);
    const text = precision === undefined ? value.value : [...value.value].slice(0, Number(precision)).join('');
    return padded(text, 'l');
  }
  const isInteger = typeof number === 'bigint' && /^[bcdnoxX]?$/.test(kind);
  if (!isInteger && !/^[eEfFgGn%]?$/.test(kind)) {
    return fail(`Unknown format code '${kind}' for object of type '${typeName(value)}'`);
  }
  if (isInteger && precision !== undefined) return fail('Precision not allowed in integer format specifier');
  if (kind === 'c') return padded(String.fromCodePoint(Number(number)), 'l');
  const isNegative = typeof number === 'bigint' ? number < 0n : number! < 0 || Object.is(number, -0);
  const style = {
    kind: kind === 'n' && isInteger ? 'd' : kind,
    precision: precision === undefined ? undefined : Number(precision),
    alternate: alternate !== undefined,
  };
  const { prefix, digits } = isInteger
    ? integerDigits(number as bigint, style)
    : { prefix: '', digits: floatDigits(Number(number), style) };
  const signText = (isNegative ? '-' : sign === '-' ? '' : sign) + prefix;
  if (!grouping) return padded(digits, 'r', signText);
  if (grouping === ',' && 'boxX'.includes(kind || ' ')) return fail(`Cannot specify ',' with '${kind}'.`);
  const filled = zero && !align ? allowed(Number(width ?? 0) - signText.length) : 0;
  return padded(grouped(digits, grouping, 'boxX'.includes(kind || ' ') ? 4 : 3, filled), 'r', signText);
}
