import { exponentText, fixed, floatRepr, scientific } from './decimal.ts';
import { fail } from './values.ts';

/** How a number is written: what format() and `%` share. */
export interface NumberStyle {
  /** d b o x X e E f F g G %, n as d and g; empty for as `str` does. */
  readonly kind: string;
  readonly precision?: number | undefined;
  /** '#': prefixes of integers, the point of floats. */
  readonly alternate?: boolean;
  readonly grouping?: string;
}

/** The digits of |value| in a style of integers, with the prefix apart. */
export function integerDigits(
  value: bigint,
  { kind, alternate = false }: NumberStyle,
): { prefix: string; digits: string } {
  const absolute = value < 0n ? -value : value;
  const radix = { b: 2, o: 8, x: 16, X: 16 }[kind] ?? 10;
  const digits = absolute.toString(radix);
  return {
    prefix: alternate && radix !== 10 ? `0${kind}` : '',
    digits: kind === 'X' ? digits.toUpperCase() : digits,
  };
}

/** |value| in a style of floats. */
export function floatDigits(value: number, style: NumberStyle): string {
  const { kind, precision, alternate = false } = style;
  const isUpper = /[EFG]/.test(kind);
  if (!Number.isFinite(value)) {
    const text = Number.isNaN(value) ? 'nan' : 'inf';
    return (isUpper ? text.toUpperCase() : text) + (kind === '%' ? '%' : '');
  }
  const text = finiteDigits(Math.abs(value), kind, precision, alternate);
  return isUpper ? text.toUpperCase() : text;
}

function finiteDigits(value: number, kind: string, precision: number | undefined, alternate: boolean): string {
  if ((precision ?? 0) > 1000) fail('the precision is too large');
  switch (kind.toLowerCase()) {
    case 'f':
    case '%': {
      const text = fixed(kind === '%' ? value * 100 : value, precision ?? 6);
      return text + (alternate && precision === 0 ? '.' : '') + (kind === '%' ? '%' : '');
    }
    case 'e': {
      const { mantissa, exponent } = scientific(value, precision ?? 6);
      return `${pointed(mantissa, 1, alternate)}e${exponentText(exponent)}`;
    }
    case 'g':
    case 'n':
      return general(value, precision ?? 6, alternate, false);
    default:
      return precision === undefined ? floatRepr(value) : general(value, precision, alternate, true);
  }
}

const pointed = (digits: string, whole: number, alternate: boolean) =>
  digits.length > whole ? `${digits.slice(0, whole)}.${digits.slice(whole)}` : digits + (alternate ? '.' : '');

/** The style g: `precision` digits, with an exponent where the number is very small or large. */
function general(value: number, precision: number, alternate: boolean, keepsPoint: boolean): string {
  const count = Math.max(1, precision);
  const { mantissa, exponent } = scientific(value, count - 1);
  const isScientific = exponent < -4 || exponent >= count - (keepsPoint ? 1 : 0);
  const digits = alternate ? mantissa : mantissa.replace(/0+$/, '') || '0';
  if (isScientific) return `${pointed(digits, 1, alternate)}e${exponentText(exponent)}`;
  if (exponent < 0) return `0.${'0'.repeat(-exponent - 1)}${digits}`;
  const text = pointed(digits.padEnd(exponent + 1, '0'), exponent + 1, alternate);
  return keepsPoint && !text.includes('.') ? `${text}.0` : text;
}

/** Digits with a separator after each group, filled with zeros up to a width. */
export function grouped(text: string, separator: string, size: number, width = 0): string {
  const [, digits, rest] = (size === 3 ? /^(\d*)(.*)$/s : /^([\da-fA-F]*)(.*)$/s).exec(text)!;
  const insert = (s: string) => s.replaceAll(new RegExp(`\\B(?=(.{${size}})+$)`, 'g'), separator);
  let whole = digits!;
  let out = insert(whole) + rest!;
  while (out.length < width) {
    const longer = insert(`0${whole}`) + rest!;
    if (longer.length > width && longer[0] === separator) break;
    whole = `0${whole}`;
    out = longer;
  }
  return out;
}
