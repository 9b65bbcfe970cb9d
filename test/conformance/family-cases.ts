/** Every method, and several together, with a config that suits every family and task. */
import type { MethodChoice, methods } from '../../src/methods/index.ts';
import type { Model } from '../../src/nn/index.ts';
import type { Base } from './bases.ts';
import { savedBottlenecks } from './cases.ts';

/** A method with a config that suits every family. */
export interface FamilyCase {
  readonly method: keyof typeof methods | 'together';
  readonly config: string;
  choices(base: Base): readonly MethodChoice[];
  /** The error on this model; undefined: it can be attached. */
  refuses?(model: Model): RegExp | undefined;
}

const one = (
  method: keyof typeof methods,
  config: string,
  fields: object,
  more: Partial<FamilyCase> = {},
): FamilyCase => ({
  method,
  config,
  choices: () => [{ type: method, ...fields }],
  ...more,
});

/** For cases that image models refuse, since they read no tokens. */
const refusedForImages = (why: RegExp) => ({ refuses: ({ image }: Model) => (image ? why : undefined) });

const three = { num_virtual_tokens: 3 };

/** The configs name no module of a family: the targets are the defaults of PEFT and AdapterHub. */
export const familyCases: readonly FamilyCase[] = [
  one('lora', 'defaults', {}),
  one('lora', 'every linear layer', { target_modules: 'all-linear', r: 4 }),
  one('lora', 'DoRA', { target_modules: 'all-linear', use_dora: true, r: 4 }),
  one('adalora', 'defaults', { init_r: 4, target_r: 2 }),
  one('ia3', 'defaults', {}),
  one('full', 'defaults', {}),
  one('prompt', 'random start', { ...three, prompt_tuning_init: 'RANDOM' }),
  one(
    'prompt',
    'tokens of the vocabulary',
    { ...three, prompt_tuning_init: 'SAMPLE_VOCAB' },
    refusedForImages(/SAMPLE_VOCAB needs token embeddings, and this model has none/),
  ),
  one(
    'lora',
    'rows of tokens',
    { trainable_token_indices: Array.from({ length: 45 }, (_, i) => 2 * i + 1) },
    refusedForImages(/'\w+\.embeddings\.patch_embeddings\.projection', which is neither an embedding/),
  ),
  one('multitask-prompt', 'one task', { ...three, num_ranks: 2 }),
  one('prefix', 'random start', three),
  one('prefix', 'projected', { ...three, prefix_projection: true, encoder_hidden_size: 12 }),
  one('p-tuning', 'MLP', { ...three, encoder_hidden_size: 12 }),
  one('bottleneck', 'defaults', { reduction_factor: 4 }),
  one('bottleneck', 'Houlsby', { config: 'double_seq_bn', reduction_factor: 4 }),
  one('bottleneck', 'parallel', { config: 'par_bn' }),
  one(
    'fusion',
    'dynamic',
    {},
    {
      choices: (base) => [
        { type: 'fusion', adapters: savedBottlenecks(base, [{ reduction_factor: 4 }, { reduction_factor: 8 }]) },
      ],
    },
  ),
  {
    method: 'together',
    config: 'P-tuning, bottleneck and LoRA',
    choices: () => [
      { type: 'p-tuning', ...three, encoder_hidden_size: 12 },
      { type: 'bottleneck', reduction_factor: 4 },
      { type: 'lora', r: 4 },
    ],
  },
];
