/** LoRA's fields: names, defaults and meaning are those of PEFT (tuners/lora/config.py). */
import { z } from 'zod';
import { targetFields } from '../shared/index.ts';

export const loraConfig = z
  .strictObject({
    r: z.int().positive().default(8).describe('Rank of the update.'),
    lora_alpha: z.number().positive().default(8).describe('α: the update is scaled by α/r.'),
    lora_dropout: z
      .number()
      .min(0)
      .lt(1)
      .default(0)
      .describe("Dropout probability of the adapter's input, in training."),
    target_modules: targetFields.target_modules,
    exclude_modules: targetFields.exclude_modules,
    layers_to_transform: targetFields.layers_to_transform,
    layers_pattern: targetFields.layers_pattern,
    rank_pattern: targetFields.rank_pattern,
    alpha_pattern: targetFields.alpha_pattern.describe(
      'Values of α that differ from lora_alpha, by a regular expression for the end of a path.',
    ),
    use_rslora: z.boolean().default(false).describe('Scale by α/√r (rank-stabilised LoRA, arXiv 2312.03732).'),
    bias: targetFields.bias,
    modules_to_save: targetFields.modules_to_save,
    init_lora_weights: z
      .union([z.boolean(), z.enum(['gaussian', 'pissa', 'olora', 'loftq']), z.string().regex(/^pissa_niter_\d+$/)])
      .default(true)
      .describe(
        'Initial values. true: A uniform as in PEFT and B zero, so the update starts at zero; gaussian: A normal; false: A and B random; pissa (arXiv 2404.02948; pissa_niter_4: by a faster, approximate SVD) and olora (arXiv 2406.01775): the leading directions of the base weight, which are subtracted from the frozen weight; loftq (arXiv 2310.08659): an approximation of the error of quantising the base.',
      ),
    loftq_config: z
      .strictObject({
        loftq_bits: z
          .union([z.literal(4), z.literal(8)])
          .optional()
          .describe('Bits of the quantised base: 4 for nf4, 8 for int8.'),
        loftq_iter: z
          .int()
          .positive()
          .optional()
          .describe('Alternating steps; with more than one the base is quantised again.'),
      })
      .nullish()
      .describe('Settings of init_lora_weights: loftq.'),
    use_dora: z.boolean().default(false).describe('Also train a magnitude for each output (DoRA, arXiv 2402.09353).'),
    lora_bias: z.boolean().default(false).describe('Also train a bias of the update.'),
    ensure_weight_tying: z
      .boolean()
      .default(false)
      .describe('Embeddings and head that share a table also share its update or its trained copy.'),
    trainable_token_indices: z
      .union([z.array(z.int().nonnegative()), z.record(z.string(), z.array(z.int().nonnegative()))])
      .nullish()
      .describe('Tokens whose rows of the embedding table are trained: ids, or ids by the name of the table.'),
    loraplus_lr_ratio: z
      .number()
      .positive()
      .nullish()
      .describe('Learning rate of B divided by that of A (LoRA+, arXiv 2402.12354); 16 is a good first value.'),
    loraplus_lr_embedding: z
      .number()
      .positive()
      .nullish()
      .describe('Learning rate of updates of embeddings under LoRA+. Default: 1e-6.'),
    fan_in_fan_out: targetFields.fan_in_fan_out,
  })
  .describe(
    'Trained updates of low rank r beside frozen linear layers (arXiv 2106.09685). Fields and defaults are PEFT’s.',
  );

export type LoraConfig = z.infer<typeof loraConfig>;
