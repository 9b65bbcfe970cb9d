import { GraftError } from '../base/index.ts';
import {
  formats,
  inputFormatOf,
  integerFormats,
  isIntegerFormat,
  type Quantization,
  roundedToQ8K,
} from '../quant/index.ts';
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

/**
 * Returns the inputs [N, C] of a product with weights of a format, rounded to 8 bits and back as llama.cpp's quantiser does (Q8_0, or
 * Q8_K for the K formats); as they are for weights whose inputs it does not round. The gradient is passed on.
 * @param format native number; −1: dense
 */
export function fakeQuantizeInputs(kernels: Kernels, x: Tensor, format: number): Tensor {
  const inputs = inputFormatOf(format);
  if (inputs === undefined) return x;
  return inputs === 'q8_k' ? roundedToQ8K(x) : kernels.fakeQuantizeBlocks(x, formats.q8_0.nativeId);
}

/** Returns kernels whose products with weights in blocks take their inputs rounded as llama.cpp does; a low-rank update, as they are. */
export function withRoundedInputs(kernels: Kernels): Kernels {
  const rounded = (x: Tensor, format: number) => fakeQuantizeInputs(kernels, x, format);
  const roundedKernels: Kernels = {
    ...kernels,
    linear: (x, weight, format, bias) => kernels.linear(rounded(x, format), weight, format, bias),
    linears(x, weights) {
      const [{ format }] = weights as [(typeof weights)[number]];
      const inputs = new Set(weights.map((each) => inputFormatOf(each.format)));
      if (inputs.size === 1) return kernels.linears(rounded(x, format), weights);
      return weights.map((each) => roundedKernels.linear(x, each.weight, each.format, each.bias ?? null));
    },
    loraLinear: (x, dropped, weight, format, ...rest) =>
      kernels.loraLinear(rounded(x, format), dropped ?? x, weight, format, ...rest),
    loraGatedLinear: (gate, up, act, ...rest) => roundedKernels.loraLinear(kernels.glu(gate, up, act), null, ...rest),
    linearCrossEntropy: (h, weight, format, targets) =>
      kernels.linearCrossEntropy(rounded(h, format), weight, format, targets),
  };
  return roundedKernels;
}
