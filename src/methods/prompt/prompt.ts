/**
 * Prompt tuning (Lester et al., arXiv 2104.08691): T trained vectors P [T, C] precede every row's embeddings, [P; x]; everything else
 * is frozen. Fields and file are PEFT's (tuners/prompt_tuning). The first token of a row is never predicted, as without a prompt;
 * in PEFT, the last virtual token predicts it where it has a label.
 */
import { z } from 'zod';
import { GraftError } from '../../base/index.ts';
import { type Embedding, type Model, moduleAt } from '../../nn/index.ts';
import { Generator, host, mixSeed, noGrad, ops, scope, Tensor } from '../../tensor/index.ts';
import { type AttachContext, type Method, ParameterInit } from '../shared/index.ts';
import { lengthField, requireSpace, VirtualVectors, virtualAdapter, virtualFields } from './virtual-tokens.ts';

export const promptFields = {
  ...virtualFields,
  prompt_tuning_init_text: z
    .string()
    .nullish()
    .describe('The text for TEXT; its tokens are repeated or cut to num_virtual_tokens.'),
  tokenizer_name_or_path: z
    .string()
    .nullish()
    .describe('PEFT: the tokenizer for TEXT. Ignored: Graft uses the tokenizer of the base.'),
};

export const promptConfig = z
  .strictObject({
    ...promptFields,
    num_virtual_tokens: lengthField,
    prompt_tuning_init: z
      .enum(['RANDOM', 'TEXT', 'SAMPLE_VOCAB'])
      .optional()
      .describe(
        'Initial vectors. TEXT: the embeddings of a text’s tokens; SAMPLE_VOCAB: of random tokens of the vocabulary; RANDOM: normal values. Default: TEXT if there is a text, else SAMPLE_VOCAB; RANDOM for images. PEFT’s default is RANDOM, which is far from any embedding and learns slowly.',
      ),
  })
  .describe('Trained vectors before every row’s embeddings (arXiv 2104.08691). Fields are PEFT’s.');

export type PromptConfig = z.infer<typeof promptConfig>;

/** The fields that decide the initial vectors. */
interface PromptInit extends Pick<PromptConfig, 'prompt_tuning_init_text'> {
  readonly num_virtual_tokens: number;
  readonly init: string;
}

/** Returns T where the config leaves it out: the number of tokens of the text. @throws GraftError 'usage' without a text */
export function lengthOfText(text: string | null | undefined, field: string, context: AttachContext): number {
  if (text) return idsOfText(text, field, context).length;
  throw new GraftError('usage', 'num_virtual_tokens is missing, and there is no initial text', {
    place: 'num_virtual_tokens',
    hint: `Set num_virtual_tokens or ${field}`,
  });
}

/**
 * Returns the ids of a text, repeated or cut to `count` where it is set.
 * @param field the name of the text's field, for errors
 * @throws GraftError 'usage' without a tokenizer or without a text
 */
export function idsOfText(
  text: string | null | undefined,
  field: string,
  context: AttachContext,
  count?: number,
): number[] {
  const error = (problem: string, hint: string) => new GraftError('usage', problem, { place: field, hint });
  if (!text) throw error(`the virtual tokens begin from a text, and ${field} is empty`, `Set ${field}`);
  if (!context.encode)
    throw error(`${field} cannot be tokenized: the model has no tokenizer`, 'Use a model with a tokenizer');
  const ids = context.encode(text);
  if (ids.length === 0) throw error(`${field} has no tokens`, 'Use a longer text');
  return Array.from({ length: count ?? ids.length }, (_, i) => ids[i % ids.length]!);
}

/** Returns the model's token embeddings; undefined for image models. */
function tokenEmbeddings(model: Model): Embedding | undefined {
  const module = moduleAt(model.root, model.sites.embeddings) as Embedding;
  return typeof module.rows === 'number' ? module : undefined;
}

/** Returns the initial vectors [T, C] as a parameter. */
export function initialVectors(model: Model, config: PromptInit, seed: number, context: AttachContext): Tensor {
  const { init, num_virtual_tokens: count, prompt_tuning_init_text: text } = config;
  using random = new ParameterInit(seed, context.loading);
  const fromTokens = !context.loading && (init === 'TEXT' || init === 'SAMPLE_VOCAB');
  if (!fromTokens) return random.normal([count, model.width], 1);
  using _ = scope();
  const embeddings = tokenEmbeddings(model);
  if (!embeddings) {
    throw new GraftError('usage', `prompt_tuning_init: ${init} needs token embeddings, and this model has none`, {
      place: 'prompt_tuning_init',
      hint: 'Use RANDOM',
    });
  }
  using generator = new Generator(mixSeed(seed, 1));
  const ids =
    init === 'TEXT'
      ? idsOfText(text, 'prompt_tuning_init_text', context, count)
      : Array.from(ops.rand([count], { generator, device: host }).data() as Float32Array, (u) =>
          Math.floor(u * embeddings.rows),
        );
  const vectors = random.full([count, model.width], 0);
  noGrad(() => ops.copy_(vectors, embeddings.forward(Tensor.from(BigInt64Array.from(ids, BigInt)))));
  return vectors;
}

/**
 * Returns `advise` for virtual tokens: they are few numbers and need a higher learning rate than a matrix; random ones are far from
 * any embedding, and hardly get there.
 * @param instead how to begin from a text
 */
export const adviseHigherRate = (what: string, random: boolean, instead: string) => (lr: number) => {
  if (lr > 1e-3) return [];
  return random
    ? [`a ${what} that begins at random hardly learns at a learning rate of ${lr}: ${instead}, or use more than 0.001`]
    : [`a ${what} learns slowly at a learning rate of ${lr}: it has few parameters, and 0.01 suits it better`];
};

export const prompt: Method<PromptConfig> = {
  name: 'prompt',
  peftType: 'PROMPT_TUNING',
  config: promptConfig,

  attach(model, config, seed, context = {}) {
    const { prompt_tuning_init_text: text } = config;
    const init = config.prompt_tuning_init ?? (text ? 'TEXT' : tokenEmbeddings(model) ? 'SAMPLE_VOCAB' : 'RANDOM');
    const initialText = init === 'TEXT' ? text : undefined;
    const length = config.num_virtual_tokens ?? lengthOfText(initialText, 'prompt_tuning_init_text', context);
    requireSpace(model, length);
    const fullConfig = { ...config, num_virtual_tokens: length };
    const initial = initialVectors(model, { ...fullConfig, init }, seed, context);
    const vectors = new VirtualVectors([length, model.width], initial);
    const port = { prompt: { length, vectors: () => vectors.value() } };
    const isRandom = init === 'RANDOM' && !context.loading;
    return virtualAdapter(model, 'prompt', fullConfig, vectors, port, {
      advise: adviseHigherRate('prompt', isRandom, 'begin from a text (prompt_tuning_init: TEXT)'),
      savedConfig: (base) => ({ ...savedInitFields(init, config, base), prompt_tuning_init: init }),
    });
  },
};

/** Returns the saved fields of the initial text. PEFT needs a tokenizer's name to load TEXT, though it does not use it then. */
export const savedInitFields = (init: string, config: Omit<PromptConfig, 'prompt_tuning_init'>, base?: string) => ({
  prompt_tuning_init_text: config.prompt_tuning_init_text ?? null,
  tokenizer_name_or_path: config.tokenizer_name_or_path ?? (init === 'TEXT' ? base : null),
  tokenizer_kwargs: null,
});
