import { GraftError } from '../base/index.ts';
import { formats, integerFormats, isIntegerFormat, type Quantization } from '../quant/index.ts';
import type { Tensor } from '../tensor/index.ts';
import type { Kernels } from './kernels.ts';

/**
 * Returns a weight [.., C] as its packed form computes (`pack` of quant/), to train with: its gradient passes on, except
 * where a code was brought into its range. Nothing is kept for that but one bit for each element.
 * @param learned scales of symmetric integers, float32 [rows, groups], which get a gradient too
 */
export function fakeQuantize(kernels: Kernels, weight: Tensor, quantization: Quantization, learned?: Tensor): Tensor {
  const { format, groupSize = 0, symmetric = true } = quantization;
  if (learned && !(isIntegerFormat(format) && symmetric)) {
    throw new GraftError('usage', `only symmetric integers have learned scales, and the format is ${format}`);
  }
  if (!isIntegerFormat(format)) return kernels.fakeQuantizeBlocks(weight, formats[format].nativeId);
  const { bits } = integerFormats[format];
  return learned
    ? kernels.fakeQuantizeLearned(weight, learned, bits)
    : kernels.fakeQuantizeIntegers(weight, bits, groupSize, symmetric);
}

/** Returns activations [N, C] rounded to int8 and back, with a scale and a zero point for each token (dynamic). */
export const fakeQuantizeTokens = (kernels: Kernels, x: Tensor): Tensor =>
  kernels.fakeQuantizeIntegers(x, integerFormats.int8.bits, 0, false);
