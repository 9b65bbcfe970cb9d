/**
 * The quantisers of GGUF's block formats in plain ATen operators, for devices without the fused ones, and as their oracle:
 * llama.cpp's formulas, with sums in the order of the elements. A row of a matrix here is a block, or a sub-block with a
 * scale of its own. Numbers so small that the reciprocal of a scale is infinite (below about 1e-37) are not covered.
 * Formulas: ggml's `ggml-quants.c`, quantize_row_*_ref, make_qkx2_quants, make_qx_quants; NF4: arXiv 2305.14314.
 */
import { host, noGrad, ops, type Tensor } from '../tensor/index.ts';
import { type BlockFormat, formats } from './formats.ts';
import { nf4Grid } from './unpack.ts';

/** Values [blocks, elements] after rounding, and true where a code was brought into its range. */
interface Rounded {
  readonly values: Tensor;
  readonly clipped?: Tensor;
}

const half = (x: Tensor) => ops.toCopy(ops.toCopy(x, { dtype: 'float16' }), { dtype: 'float32' });
const unlessZero = (d: Tensor, x: Tensor) => ops.maskedFill(x, ops.eqScalar(d, 0), 0);
const columnsOf = (x: Tensor) => Array.from({ length: x.size(1) }, (_, i) => ops.narrow(x, 1, i, 1));
const sumOf = (terms: readonly Tensor[]) => terms.reduce((a, b) => ops.add(a, b));
const clampedNearest = (x: Tensor, low: number, high: number) => ops.clamp(ops.round(x), low, high);
const outside = (code: Tensor, low: number, high: number) =>
  ops.logicalOr(ops.ltScalar(code, low), ops.gtScalar(code, high));
const choose = (which: Tensor, to: Record<string, Tensor>, from: Record<string, Tensor>) => {
  for (const key of Object.keys(from)) to[key] = ops.where(which, from[key]!, to[key]!);
};

/** Returns the number of largest magnitude of each row, the first of several: [rows, 1]. */
const peakOf = (x: Tensor) => ops.gather(x, 1, ops.argmax(ops.abs(x), 1, true));

function q8(x: Tensor): Rounded {
  const d = ops.divScalar(ops.amax(ops.abs(x), [1], true), 127);
  const scaled = ops.mul(x, unlessZero(d, ops.reciprocal(d)));
  // Halves go away from zero. The number below 0.5 is added, because 0.49999997 + 0.5 is 1 in float32.
  const code = ops.mul(ops.trunc(ops.addScalar(ops.abs(scaled), 0.5 - 2 ** -25)), ops.sign(scaled));
  return { values: ops.mul(code, half(d)) };
}

/** Q8_K: the scale stays float32, halves go to even. Blocks whose inverse scale would be infinite become zeros. */
function q8k(x: Tensor): Rounded {
  const peak = ops.amax(ops.abs(x), [1], true);
  const inverse = ops.div(ops.mulScalar(ops.ones(peak.shape), 127), peak);
  const values = ops.mul(ops.round(ops.mul(inverse, x)), ops.reciprocal(inverse));
  return { values: ops.maskedFill(values, ops.ltScalar(peak, 2 ** -119), 0) };
}

function symmetric(x: Tensor, bits: number): Rounded {
  const zero = 2 ** (bits - 1);
  const d = ops.divScalar(peakOf(x), -zero);
  const scaled = ops.mul(x, unlessZero(d, ops.reciprocal(d)));
  const code = ops.trunc(ops.addScalar(scaled, zero + 0.5));
  const kept = ops.clamp(code, 0, 2 * zero - 1);
  return { values: ops.mul(ops.addScalar(kept, -zero), half(d)), clipped: ops.gtScalar(code, 2 * zero - 1) };
}

function affine(x: Tensor, bits: number): Rounded {
  const minimum = ops.amin(x, [1], true);
  const d = ops.divScalar(ops.sub(ops.amax(x, [1], true), minimum), 2 ** bits - 1);
  const scaled = ops.mul(ops.sub(x, minimum), unlessZero(d, ops.reciprocal(d)));
  return { values: ops.add(ops.mul(ops.trunc(ops.addScalar(scaled, 0.5)), half(d)), half(minimum)) };
}

function nf4(x: Tensor): Rounded {
  const absmax = ops.amax(ops.abs(x), [1], true);
  const scaled = ops.mul(x, unlessZero(absmax, ops.reciprocal(absmax)));
  const values = nf4Grid(host).data() as Float32Array;
  let rounded = ops.mulScalar(ops.ones(x.shape), values[0]!);
  for (let i = 1; i < 16; i++) {
    const midpoint = Math.fround(values[i - 1]! + values[i]!) / 2;
    rounded = ops.maskedFill(rounded, ops.gtScalar(scaled, midpoint), values[i]!);
  }
  return { values: ops.mul(rounded, absmax) };
}

/** Q4_K, Q5_K: scale and minimum of the least weighted error among candidates for the range of codes. x: [blocks, 256]. */
function affineSearch(x: Tensor, largest: number, first: number, steps: number): Rounded {
  const rows = ops.reshape(x, [-1, 32]);
  const columns = columnsOf(rows);
  const meanSquare = ops.divScalar(sumOf(columns.map((c) => ops.mul(c, c))), 32);
  // LibTorch's square root of float32 is not always the nearest number; that of float64, rounded, is.
  const average = ops.toCopy(ops.sqrt(ops.toCopy(meanSquare, { dtype: 'float64' })), { dtype: 'float32' });
  const weights = columns.map((c) => ops.add(average, ops.abs(c)));
  const weighted = columns.map((c, i) => ops.mul(weights[i]!, c));
  const [sumW, sumX] = [sumOf(weights), sumOf(weighted)];
  const high = ops.amax(rows, [1], true);
  const lowest = ops.clamp(ops.amin(rows, [1], true), null, 0);
  const codesOf = (inverse: Tensor, low: Tensor) =>
    columns.map((c) => clampedNearest(ops.mul(inverse, ops.sub(c, low)), 0, largest));
  const errorOf = (scale: Tensor, low: Tensor, codes: readonly Tensor[]) => {
    const errors = columns.map((c, i) => ops.sub(ops.add(ops.mul(scale, codes[i]!), low), c));
    return sumOf(errors.map((e, i) => ops.mul(weights[i]!, ops.mul(e, e))));
  };
  const inverseOf = (n: number, low: Tensor) => ops.div(ops.mulScalar(ops.ones(low.shape), n), ops.sub(high, low));
  const inverse = inverseOf(largest, lowest);
  const scale = ops.reciprocal(inverse);
  const best = { scale, low: lowest, inverse, base: lowest, error: errorOf(scale, lowest, codesOf(inverse, lowest)) };
  for (let step = 0; step <= steps; step++) {
    const range = Math.fround(Math.fround(first + Math.fround(Math.fround(0.1) * step)) + largest);
    const candidate = inverseOf(range, best.low);
    const codes = codesOf(candidate, best.low);
    const weightedCodes = codes.map((code, i) => ops.mul(weights[i]!, code));
    const sumL = sumOf(weightedCodes);
    const sumL2 = sumOf(weightedCodes.map((wc, i) => ops.mul(wc, codes[i]!)));
    const sumXl = sumOf(weightedCodes.map((wc, i) => ops.mul(wc, columns[i]!)));
    const cross = (a: Tensor, b: Tensor, c: Tensor, d: Tensor) => ops.sub(ops.mul(a, b), ops.mul(c, d));
    const determinant = cross(sumW, sumL2, sumL, sumL);
    const low = ops.div(cross(sumL2, sumX, sumL, sumXl), determinant);
    const isPositive = ops.gtScalar(low, 0);
    const found = {
      scale: ops.where(isPositive, ops.div(sumXl, sumL2), ops.div(cross(sumW, sumXl, sumX, sumL), determinant)),
      low: ops.maskedFill(low, isPositive, 0),
    };
    const error = errorOf(found.scale, found.low, codes);
    const isBetter = ops.logicalAnd(ops.gtScalar(determinant, 0), ops.gt(best.error, error));
    choose(isBetter, best, { ...found, inverse: candidate, base: best.low, error });
  }
  const flat = ops.eq(high, lowest);
  const eights = (t: Tensor) => ops.reshape(t, [-1, 8]);
  const scales = eights(ops.maskedFill(best.scale, flat, 0));
  const minima = eights(ops.neg(ops.where(flat, lowest, best.low)));
  const sixBits = (t: Tensor) => {
    const most = ops.clamp(ops.amax(t, [1], true), 0, null);
    const inverse = unlessZero(most, ops.div(ops.mulScalar(ops.ones(most.shape), 63), most));
    return ops.mul(half(ops.divScalar(most, 63)), clampedNearest(ops.mul(inverse, t), 0, 63));
  };
  const [d, m] = [ops.reshape(sixBits(scales), [-1, 1]), ops.reshape(sixBits(minima), [-1, 1])];
  const code = ops.round(ops.div(ops.add(rows, m), d));
  const kept = unlessZero(d, ops.clamp(code, 0, largest));
  return {
    values: ops.sub(ops.mul(d, kept), m),
    clipped: ops.logicalAnd(outside(code, 0, largest), ops.neScalar(d, 0)),
  };
}

/** Q6_K: one scale for 16 elements, the best of nineteen candidates. x: [blocks, 256]. */
function symmetricSearch(x: Tensor): Rounded {
  const rows = ops.reshape(x, [-1, 16]);
  const columns = columnsOf(rows);
  const peak = peakOf(rows);
  const weighted = columns.map((c) => ops.mul(ops.mul(c, c), c));
  const sums = (range: number) => {
    const inverse = ops.div(ops.mulScalar(ops.ones(peak.shape), -range), peak);
    const codes = columns.map((c) => clampedNearest(ops.mul(inverse, c), -32, 31));
    const lx = sumOf(codes.map((code, i) => ops.mul(weighted[i]!, code)));
    const l2 = sumOf(codes.map((code, i) => ops.mul(ops.mul(ops.mul(columns[i]!, columns[i]!), code), code)));
    return { lx, l2 };
  };
  const start = sums(32);
  const scale = unlessZero(start.l2, ops.div(start.lx, start.l2));
  const best = { scale, score: ops.mul(scale, start.lx) };
  for (const step of [-9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9]) {
    const { lx, l2 } = sums(Math.fround(32 + Math.fround(Math.fround(0.1) * step)));
    const isBetter = ops.logicalAnd(ops.gtScalar(l2, 0), ops.gt(ops.mul(lx, lx), ops.mul(best.score, l2)));
    const found = ops.div(lx, l2);
    choose(isBetter, best, { scale: found, score: ops.mul(found, lx) });
  }
  const isNone = ops.ltScalar(ops.abs(peak), 1e-15);
  const scales = ops.reshape(ops.maskedFill(best.scale, isNone, 0), [-1, 16]);
  const most = peakOf(scales);
  const inverse = unlessZero(most, ops.div(ops.mulScalar(ops.ones(most.shape), -128), most));
  const d = unlessZero(most, half(ops.reciprocal(inverse)));
  const eights = ops.clamp(ops.round(ops.mul(inverse, scales)), null, 127);
  const step = ops.reshape(ops.mul(d, eights), [-1, 1]);
  const code = ops.round(ops.div(rows, step));
  const kept = unlessZero(step, ops.clamp(code, -32, 31));
  return {
    values: ops.mul(step, kept),
    clipped: ops.logicalAnd(outside(code, -32, 31), ops.neScalar(step, 0)),
  };
}

const quantisers: Partial<Record<BlockFormat, (x: Tensor) => Rounded>> = {
  q8_0: q8,
  q4_0: (x) => symmetric(x, 4),
  q5_0: (x) => symmetric(x, 5),
  q4_1: (x) => affine(x, 4),
  q5_1: (x) => affine(x, 5),
  q4_k: (x) => affineSearch(x, 15, -1, 20),
  q5_k: (x) => affineSearch(x, 31, -0.5, 15),
  q6_k: symmetricSearch,
  nf4,
};

/**
 * Returns a weight rounded to a block format and unpacked again, [.., C] in its own dtype. The gradient is passed on
 * where no code was brought into its range.
 * @param nativeId the native number of the format, as kernels take it
 */
export function roundedToBlocks(weight: Tensor, nativeId: number): Tensor {
  const name = (Object.keys(quantisers) as BlockFormat[]).find((key) => formats[key].nativeId === nativeId);
  if (!name) throw new Error(`no format in blocks has the number ${nativeId}`);
  return inBlocks(weight, formats[name].blockElements, quantisers[name]!);
}

/**
 * Returns activations [.., C] rounded to Q8_K and unpacked again, in their own dtype: blocks of 256, in which nothing is stored. The
 * gradient is passed on.
 */
export const roundedToQ8K = (x: Tensor): Tensor => inBlocks(x, formats.q4_k.blockElements, q8k);

function inBlocks(numbers: Tensor, elements: number, round: (x: Tensor) => Rounded): Tensor {
  const { values, clipped } = noGrad(() =>
    round(ops.reshape(ops.toCopy(numbers, { dtype: 'float32' }), [-1, elements])),
  );
  const shaped = (t: Tensor) => ops.reshape(t, numbers.shape);
  const passed = clipped ? ops.maskedFill(numbers, shaped(clipped), 0) : numbers;
  const rounded = ops.toCopy(shaped(values), { dtype: numbers.dtype });
  // The difference is exactly zero; it brings the gradient.
  return ops.add(rounded, ops.sub(passed, ops.detach(passed)));
}
