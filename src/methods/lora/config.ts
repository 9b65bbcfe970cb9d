/** LoRA's fields: names, defaults and meaning are those of PEFT (tuners/lora/config.py). */
import { z } from 'zod';

const names = z.union([z.string(), z.array(z.string())]);

export const loraConfig = z
  .strictObject({
    r: z.int().positive().default(8).describe('Rank of the update.'),
    lora_alpha: z.number().positive().default(8).describe('α: the update is scaled by α/r.'),
    lora_dropout: z
      .number()
      .min(0)
      .lt(1)
      .default(0)
      .describe("Share of the adapter's input that is dropped while training."),
    target_modules: names
      .nullish()
      .describe(
        'Which modules get an update: last parts of their paths, or one regular expression for whole paths, or all-linear. Default: as PEFT chooses for the family (query and value projections).',
      ),
    exclude_modules: names.nullish().describe('Modules that get none, named in the same way.'),
    layers_to_transform: z
      .union([z.int().nonnegative(), z.array(z.int().nonnegative())])
      .nullish()
      .describe('Only these layers, counted from 0.'),
    layers_pattern: names.nullish().describe('Name of the list that layers_to_transform counts in.'),
    rank_pattern: z
      .record(z.string(), z.int().positive())
      .default({})
      .describe('Ranks other than r, by regular expression for the end of the path.'),
    alpha_pattern: z
      .record(z.string(), z.number().positive())
      .default({})
      .describe('α other than lora_alpha, in the same way.'),
    use_rslora: z.boolean().default(false).describe('Scale by α/√r (arXiv 2312.03732).'),
    bias: z
      .enum(['none', 'all', 'lora_only'])
      .default('none')
      .describe('Biases that are trained too: every one, or those of the modules with an update.'),
    modules_to_save: z
      .array(z.string())
      .nullish()
      .describe('Modules that are trained and saved whole, by the last part of their paths.'),
    init_lora_weights: z
      .union([z.boolean(), z.enum(['gaussian', 'pissa', 'olora', 'loftq']), z.string().regex(/^pissa_niter_\d+$/)])
      .default(true)
      .describe(
        'true: A uniform as in PEFT and B zero, so that nothing changes at first; gaussian: A normal; false: both random; pissa (arXiv 2404.02948; pissa_niter_4: by a faster, approximate decomposition) and olora (arXiv 2406.01775): the strongest directions of the base weight, which is trained without them; loftq (arXiv 2310.08659): what packing the base took away.',
      ),
    loftq_config: z
      .strictObject({
        loftq_bits: z
          .union([z.literal(4), z.literal(8)])
          .optional()
          .describe('Of the packed base: nf4 has 4, int8 has 8.'),
        loftq_iter: z.int().positive().optional().describe('Alternations; with more than one the base is packed anew.'),
      })
      .nullish()
      .describe('For init_lora_weights: loftq.'),
    use_dora: z
      .boolean()
      .default(false)
      .describe('Train a magnitude for each output beside the update of its direction (DoRA, arXiv 2402.09353).'),
    lora_bias: z.boolean().default(false).describe('A trained bias of the update itself.'),
    ensure_weight_tying: z
      .boolean()
      .default(false)
      .describe('Embeddings and head that share a table share its update or trained copy too.'),
    trainable_token_indices: z
      .union([z.array(z.int().nonnegative()), z.record(z.string(), z.array(z.int().nonnegative()))])
      .nullish()
      .describe('Tokens whose rows of the embeddings are trained whole: ids, or ids by the name of the table.'),
    loraplus_lr_ratio: z
      .number()
      .positive()
      .nullish()
      .describe('Learning rate of B over that of A (LoRA+, arXiv 2402.12354); 16 is a good first try.'),
    loraplus_lr_embedding: z
      .number()
      .positive()
      .nullish()
      .describe('Learning rate of updates of tables under LoRA+; default 1e-6.'),
    fan_in_fan_out: z
      .boolean()
      .default(false)
      .describe('PEFT: the base weight is stored [in, out]. The layers know, and it is written as they are.'),
  })
  .describe(
    'Small trained updates of rank r beside frozen linear layers (arXiv 2106.09685). Fields and defaults are PEFT’s.',
  );

export type LoraConfig = z.infer<typeof loraConfig>;
