/** Decimal digits of floating-point numbers, rounded as Python rounds: exactly, and ties to even. */

/** A finite number as numerator / denominator, the denominator a power of two. */
export function asRatio(value: number): [numerator: bigint, denominator: bigint] {
  let [scaled, shift] = [value, 0];
  while (!Number.isInteger(scaled)) {
    scaled *= 2;
    shift++;
  }
  return [BigInt(scaled), 1n << BigInt(shift)];
}

/** numerator / denominator as an integer, ties to even; both are positive, or the numerator is 0. */
export function divideRounded(numerator: bigint, denominator: bigint): bigint {
  const quotient = numerator / denominator;
  const twice = 2n * (numerator % denominator);
  const isUp = twice > denominator || (twice === denominator && quotient % 2n === 1n);
  return isUp ? quotient + 1n : quotient;
}

/** |value| with `digits` digits after the point. */
export function fixed(value: number, digits: number): string {
  const [numerator, denominator] = asRatio(Math.abs(value));
  const scaled = divideRounded(numerator * 10n ** BigInt(digits), denominator);
  const text = scaled.toString().padStart(digits + 1, '0');
  return digits === 0 ? text : `${text.slice(0, -digits)}.${text.slice(-digits)}`;
}

/** The first `digits` + 1 digits of |value|, and the exponent of the first. */
export function scientific(value: number, digits: number): { mantissa: string; exponent: number } {
  if (value === 0) return { mantissa: '0'.repeat(digits + 1), exponent: 0 };
  const [numerator, denominator] = asRatio(Math.abs(value));
  let exponent = Math.floor(Math.log10(Math.abs(value)));
  for (;;) {
    const shift = digits - exponent;
    const scale = 10n ** BigInt(Math.abs(shift));
    const scaled =
      shift >= 0 ? divideRounded(numerator * scale, denominator) : divideRounded(numerator, denominator * scale);
    const mantissa = scaled.toString();
    if (mantissa.length === digits + 1) return { mantissa, exponent };
    exponent += mantissa.length > digits + 1 ? 1 : -1;
  }
}

/** Python's `round(value, digits)` of a float. */
export function roundFloat(value: number, digits: number): number {
  if (!Number.isFinite(value) || digits > 350) return value;
  if (digits < -320) return value < 0 ? -0 : 0;
  const sign = value < 0 || Object.is(value, -0) ? -1 : 1;
  if (digits >= 0) return sign * Number(fixed(value, digits));
  const [numerator, denominator] = asRatio(Math.abs(value));
  const unit = 10n ** BigInt(-digits);
  return sign * Number(divideRounded(numerator, denominator * unit) * unit);
}

/** Python's `round(value, digits)` of an integer. */
export function roundInteger(value: bigint, digits: number): bigint {
  if (digits >= 0) return value;
  const unit = 10n ** BigInt(-digits);
  const rounded = divideRounded(value < 0n ? -value : value, unit) * unit;
  return value < 0n ? -rounded : rounded;
}

/** The shortest text that is this number again, as Python's `repr`. */
export function floatRepr(value: number): string {
  if (Number.isNaN(value)) return 'nan';
  if (!Number.isFinite(value)) return value < 0 ? '-inf' : 'inf';
  const sign = value < 0 || Object.is(value, -0) ? '-' : '';
  const [mantissa, power] = Math.abs(value).toExponential().split('e') as [string, string];
  const digits = mantissa.replace('.', '');
  const exponent = Number(power);
  if (exponent < -4 || exponent >= 16) return `${sign}${mantissa}e${exponentText(exponent)}`;
  if (exponent < 0) return `${sign}0.${'0'.repeat(-exponent - 1)}${digits}`;
  const whole = digits.slice(0, exponent + 1).padEnd(exponent + 1, '0');
  return `${sign}${whole}.${digits.slice(exponent + 1) || '0'}`;
}

/** An exponent with its sign and at least two digits. */
export const exponentText = (exponent: number): string =>
  `${exponent < 0 ? '-' : '+'}${String(Math.abs(exponent)).padStart(2, '0')}`;
