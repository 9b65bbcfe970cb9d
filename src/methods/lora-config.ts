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
      .union([z.boolean(), z.literal('gaussian')])
      .default(true)
      .describe(
        'true: A uniform as in PEFT and B zero, so that nothing changes at first; gaussian: A normal; false: both random.',
      ),
    fan_in_fan_out: z
      .boolean()
      .default(false)
      .describe('PEFT: the base weight is stored [in, out]. Ignored here, where no layer is.'),
  })
  .describe(
    'Small trained updates of rank r beside frozen linear layers (arXiv 2106.09685). Fields and defaults are PEFT’s.',
  );

export type LoraConfig = z.infer<typeof loraConfig>;
