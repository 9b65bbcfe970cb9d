import { z } from 'zod';
import { fakeQuantizeInputs, fakeQuantizeTokens, type Kernels } from '../../nn/index.ts';
import { formats, isIntegerFormat, type Quantization, type WeightFormat, weightFormats } from '../../quant/index.ts';
import type { Tensor } from '../../tensor/index.ts';
import { targetFields } from '../shared/index.ts';

const format = z.enum(weightFormats as [WeightFormat, ...WeightFormat[]]);

export const qatConfig = z
  .strictObject({
    weight: format.describe(
      'Number format to which weights are rounded: a block format of GGUF, rounded as llama.cpp does (q4_0, q8_0, q4_k …), nf4, or integers, rounded as torchao does (int2 to int8).',
    ),
    group_size: z
      .union([z.int().positive(), z.literal('channel')])
      .optional()
      .describe(
        'Integers: elements of a row that share a scale; channel: the whole row. Default: 32. GGUF’s blocks have their own size.',
      ),
    symmetric: z
      .boolean()
      .default(true)
      .describe('Integers: zero has the code 0; false: codes span the range from minimum to maximum of each group.'),
    activation: z
      .enum(['int8', 'q8'])
      .optional()
      .describe(
        'Inputs of these layers are rounded too. int8: with a scale and a zero point for each token, as torchao does; q8: in blocks, as llama.cpp does for the weights’ format (Q8_0, or Q8_K for the K formats).',
      ),
    over: z
      .enum(['merged', 'base'])
      .default('merged')
      .describe(
        'What is rounded where another method changes a weight. merged: the sum W + s·BA, as in a merged and quantised model; base: the frozen W, and the adapter stays in float, as on a quantised base that many adapters share.',
      ),
    target_modules: targetFields.target_modules.describe(
      'Modules whose weights are rounded, named as for lora. Default: all-linear, every linear layer but the head.',
    ),
    exclude_modules: targetFields.exclude_modules.describe('Modules that are not rounded, named in the same way.'),
    embedding: format
      .optional()
      .describe('Number format of the embeddings; a head that shares their table has it too. Default: not rounded.'),
    head: format.optional().describe('Number format of the output projection to the vocabulary. Default: not rounded.'),
    learned_range: z
      .boolean()
      .default(false)
      .describe(
        'Symmetric integers: the scale of each group of a linear layer is trained (LSQ, arXiv 1902.08153), beginning at the range of its weights; not those of embeddings, nor of a head that shares their table.',
      ),
    start_step: z
      .int()
      .nonnegative()
      .default(0)
      .describe('Steps that are trained without rounding first; measurements between them are with it.'),
  })
  .describe(
    'Weights are rounded to a number format in every forward pass, so that training learns with the error of the quantised model (quantisation-aware training, arXiv 1712.05877). It stands beside a method that trains: full, lora and others.',
  );

export type QatConfig = z.infer<typeof qatConfig>;

/** Elements of a group of integers, where the config does not say. */
const defaultGroup = 32;

/** How weights of this format are rounded under a config. */
export function quantizationOf(config: QatConfig, weightFormat: WeightFormat = config.weight): Quantization {
  if (!isIntegerFormat(weightFormat)) return { format: weightFormat };
  const { group_size: group = defaultGroup, symmetric } = config;
  return { format: weightFormat, ...(group !== 'channel' && { groupSize: group }), symmetric };
}

/** How a layer's inputs are rounded. */
export type RoundInputs = (kernels: Kernels, x: Tensor) => Tensor;

/** How the inputs of a layer whose weight is rounded to this format are rounded under a config; undefined: not. */
export function inputRoundingOf({ activation }: QatConfig, weightFormat: WeightFormat): RoundInputs | undefined {
  if (activation === 'int8') return fakeQuantizeTokens;
  if (activation === undefined || isIntegerFormat(weightFormat)) return undefined;
  const { nativeId } = formats[weightFormat];
  return (kernels, x) => fakeQuantizeInputs(kernels, x, nativeId);
}
