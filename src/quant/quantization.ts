import { GraftError } from '../base/index.ts';
import { host, ops, type Tensor } from '../tensor/index.ts';
import {
  type FormatName,
  formats,
  integerFormats,
  isIntegerFormat,
  type WeightFormat,
  weightFormats,
} from './formats.ts';
import { quantized } from './unpack.ts';

/** How the rows of a weight are rounded. */
export interface Quantization {
  readonly format: WeightFormat;
  /** Integers: the elements of a row that share a scale; absent: the whole row does. Blocks have their own size. */
  readonly groupSize?: number | undefined;
  /** Integers: zero has the code 0 (default); false: codes span the range from the minimum to the maximum of a group. */
  readonly symmetric?: boolean | undefined;
}

/** Returns the rounding that a stored format says all of; undefined for the formats of integers and for element types. */
export const roundingOfFormat = (format: FormatName): Quantization | undefined =>
  (weightFormats as readonly string[]).includes(format) && !isIntegerFormat(format as WeightFormat)
    ? { format: format as WeightFormat }
    : undefined;

/** Whether two roundings of rows of `width` numbers are the same. */
export function isSameRounding(a: Quantization, b: Quantization, width: number): boolean {
  if (a.format !== b.format) return false;
  const isSymmetric = ({ symmetric = true }: Quantization) => symmetric;
  const groupOf = ({ groupSize = width }: Quantization) => groupSize;
  return !isIntegerFormat(a.format) || (groupOf(a) === groupOf(b) && isSymmetric(a) === isSymmetric(b));
}

/** Returns what a message calls a rounding: `q4_0`, `int4 (group_size: 32)`. */
export function roundingName({ format, groupSize, symmetric = true }: Quantization): string {
  if (!isIntegerFormat(format)) return format;
  return `${format} (group_size: ${groupSize ?? 'channel'}${symmetric ? '' : ', symmetric: false'})`;
}

/** A weight as layers hold it: dense with the format −1, or uint8 [out, bytes of a row] in the format of a native number. */
export interface PackedWeight {
  readonly weight: Tensor;
  readonly format: number;
}

/** Integers apart from their scales, as files hold them. */
export interface IntegerWeight {
  /** int8 [out, in] */
  readonly codes: Tensor;
  /** float32 [out, groups] */
  readonly scales: Tensor;
  /** int8 [out, groups]; value = (code − zero point) · scale */
  readonly zeroPoints: Tensor;
}

/**
 * Returns a weight rounded to integers: exactly the numbers of which the fake quantiser's values are made.
 * @param weight float32 or bfloat16 [out, in]
 * @param given float32 [out, groups]: learned scales, with zero points of 0
 */
export function integersOf(weight: Tensor, quantization: Quantization, given?: Tensor): IntegerWeight {
  const { format, groupSize = 0, symmetric = true } = quantization;
  if (!isIntegerFormat(format)) throw new GraftError('usage', `${format} is not a format of integers`);
  const { bits } = integerFormats[format];
  const [codes, scales, zeroPoints] = ops.quantizeIntegers(weight, bits, groupSize, symmetric, given ?? null);
  return { codes, scales, zeroPoints };
}

/**
 * Returns integers in blocks of 32, for layers to hold.
 * @throws GraftError 'mismatch' where the groups are not whole blocks
 */
export function packIntegers(integers: IntegerWeight, format: WeightFormat): PackedWeight {
  if (!isIntegerFormat(format)) throw new GraftError('usage', `${format} is not a format of integers`);
  const { bits, packed } = integerFormats[format];
  const { nativeId, blockElements } = formats[packed];
  const [width, groups] = [integers.codes.size(1), integers.scales.size(1)];
  if (width % (groups * blockElements) !== 0) {
    throw new GraftError(
      'mismatch',
      `groups of ${width / groups} in rows of ${width} are not whole blocks of ${blockElements}`,
      { hint: `Keep these weights dense, or choose a group_size that is a multiple of ${blockElements}` },
    );
  }
  return {
    weight: ops.packIntegers(integers.codes, integers.scales, integers.zeroPoints, bits),
    format: nativeId,
  };
}

/**
 * Returns a weight in the blocks of its format. Unpacked (`ops.dequantize`) they are what the fake quantiser gives, bit
 * for bit.
 * @param weight float32 [out, in]
 * @param given learned scales of integers, float32 [out, groups]
 */
export function pack(weight: Tensor, quantization: Quantization, given?: Tensor): PackedWeight {
  const { format } = quantization;
  if (isIntegerFormat(format)) {
    const packed = packIntegers(integersOf(weight.to(host), quantization, given?.to(host)), format);
    return { ...packed, weight: packed.weight.to(weight.device) };
  }
  const { nativeId } = formats[format];
  return { weight: quantized(weight, nativeId), format: nativeId };
}

/**
 * Checks that rows can be cut into the groups or blocks of a format.
 * @param widths the width of each layer, by its path
 * @throws GraftError 'mismatch' that names the layers and the nearest that fits all of them
 */
export function requireWidths(quantization: Quantization, widths: ReadonlyMap<string, number>): void {
  const { format, groupSize } = quantization;
  const unit = isIntegerFormat(format) ? groupSize : formats[format].blockElements;
  if (unit === undefined) return;
  const refused = [...widths].filter(([, width]) => width % unit !== 0);
  if (refused.length === 0) return;
  const shown = refused.slice(0, 3).map(([path, width]) => `${path} (${width} wide)`);
  const rest = refused.length > 3 ? ` and ${refused.length - 3} more` : '';
  const what = isIntegerFormat(format) ? `a group_size of ${unit}` : `${format} with its blocks of ${unit}`;
  throw new GraftError('mismatch', `${what} does not divide the width of ${shown.join(', ')}${rest}`, {
    hint: `Choose ${alternative(quantization, [...widths.values()])}, or keep these layers dense`,
    data: { layers: refused.map(([path]) => path), unit },
  });
}

/** Returns what fits all widths: the nearest size of a group, or formats with smaller blocks. */
function alternative({ format, groupSize }: Quantization, widths: readonly number[]): string {
  const common = widths.reduce(greatestCommonDivisor);
  if (isIntegerFormat(format)) {
    const divisors = Array.from({ length: common }, (_, i) => i + 1).filter((size) => size > 1 && common % size === 0);
    const distance = (size: number) => Math.abs(size - groupSize!);
    const [nearest] = divisors.sort((a, b) => distance(a) - distance(b));
    return nearest === undefined ? 'one scale for each row (no group_size)' : `group_size: ${nearest}`;
  }
  const fitting = weightFormats.filter(
    (name) =>
      !isIntegerFormat(name) &&
      formats[name].bits >= formats[format].bits &&
      common % formats[name].blockElements === 0,
  );
  return fitting.length > 0 ? fitting.join(' or ') : 'integers (int4, int8 …)';
}

const greatestCommonDivisor = (a: number, b: number): number => (b === 0 ? a : greatestCommonDivisor(b, a % b));
