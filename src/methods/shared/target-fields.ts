/** Fields of PEFT's configs that select the adapted modules, and further modules to train. */
import { z } from 'zod';

const names = z.union([z.string(), z.array(z.string())]);

export const targetFields = {
  target_modules: names
    .nullish()
    .describe(
      'Modules that get an update: the last parts of their paths, a regular expression for whole paths, or all-linear. Default: the modules that PEFT chooses for the family (query and value projections).',
    ),
  exclude_modules: names.nullish().describe('Modules that get no update, named in the same way.'),
  layers_to_transform: z
    .union([z.int().nonnegative(), z.array(z.int().nonnegative())])
    .nullish()
    .describe('Numbers of the layers that get an update, counted from 0. Default: all layers.'),
  layers_pattern: names.nullish().describe('Name of the list of layers that layers_to_transform counts in.'),
  rank_pattern: z
    .record(z.string(), z.int().positive())
    .default({})
    .describe('Ranks that differ from r, by a regular expression for the end of a path.'),
  alpha_pattern: z
    .record(z.string(), z.number().positive())
    .default({})
    .describe('Values of α that differ from the general one, by a regular expression for the end of a path.'),
  bias: z
    .enum(['none', 'all', 'lora_only'])
    .default('none')
    .describe('Biases of the base that are trained too: all of them, or those of the target modules (lora_only).'),
  modules_to_save: z
    .array(z.string())
    .nullish()
    .describe('Modules that are trained and saved whole, by the last parts of their paths.'),
  fan_in_fan_out: z
    .boolean()
    .default(false)
    .describe('PEFT: the base stores its weights as [in, out]. Graft detects it; the field is ignored.'),
} as const;
