/**
 * Prompt tuning (Lester et al., arXiv 2104.08691): T trained vectors P [T, C] stand in front of every row's embeddings,
 * [P; x], and all else is frozen. Fields and file are PEFT's (tuners/prompt_tuning). The label of a row's own first token
 * never counts, as without a prompt; PEFT's loss has it predicted by the last virtual token where it is given.
 */
import { z } from 'zod';
import { GraftError } from '../../base/index.ts';
import { type Embedding, type Model, moduleAt } from '../../nn/index.ts';
import { Generator, mixSeed, noGrad, ops, scope, Tensor } from '../../tensor/index.ts';
import { type AttachContext, type Method, ParameterInit } from '../shared/index.ts';
import { lengthField, requireSpace, Vectors, virtualAdapter, virtualFields } from './virtual-tokens.ts';

export const promptFields = {
  ...virtualFields,
  prompt_tuning_init_text: z
    .string()
    .nullish()
    .describe('The text of TEXT; its tokens are repeated or cut to num_virtual_tokens.'),
  tokenizer_name_or_path: z
    .string()
    .nullish()
    .describe('PEFT: where the tokenizer of TEXT is. Ignored here, where the base brings its own.'),
};

export const promptConfig = z
  .strictObject({
    ...promptFields,
    num_virtual_tokens: lengthField,
    prompt_tuning_init: z
      .enum(['RANDOM', 'TEXT', 'SAMPLE_VOCAB'])
      .optional()
      .describe(
        'First vectors: those of a text’s tokens, of tokens drawn from the vocabulary, or normal numbers. Default: TEXT where there is one, else SAMPLE_VOCAB, for images RANDOM. PEFT’s default is RANDOM, which lies far from all that the model has seen and learns little.',
      ),
  })
  .describe('Trained vectors in front of every row’s embeddings (arXiv 2104.08691). Fields are PEFT’s.');

export type PromptConfig = z.infer<typeof promptConfig>;

interface Start extends Pick<PromptConfig, 'prompt_tuning_init_text'> {
  readonly num_virtual_tokens: number;
  readonly init: string;
}

/** T where the config leaves it out. @throws GraftError 'usage' without a text either */
export function lengthOfText(text: string | null | undefined, field: string, tools: AttachContext): number {
  if (text) return idsOfText(text, field, tools).length;
  throw new GraftError('usage', 'num_virtual_tokens is missing, and so is a text to begin from', {
    place: 'num_virtual_tokens',
    hint: `Give it, or ${field}`,
  });
}

/** Ids of a text, repeated or cut to `count` where it is given. @throws GraftError 'usage' without a tokenizer or a text */
export function idsOfText(
  text: string | null | undefined,
  field: string,
  tools: AttachContext,
  count?: number,
): number[] {
  const wrong = (problem: string, hint: string) => new GraftError('usage', problem, { place: field, hint });
  if (!text) throw wrong(`the virtual tokens are to begin from a text, and ${field} is empty`, `Give ${field}`);
  if (!tools.encode)
    throw wrong(`${field} cannot be read: the model has no tokenizer`, 'Give a model with a tokenizer');
  const ids = tools.encode(text);
  if (ids.length === 0) throw wrong(`${field} has no tokens`, 'Give a longer text');
  return Array.from({ length: count ?? ids.length }, (_, i) => ids[i % ids.length]!);
}

/** The table of tokens; models that see images have none. */
function tableOf(model: Model): Embedding | undefined {
  const module = moduleAt(model.root, model.sites.embeddings) as Embedding;
  return typeof module.rows === 'number' ? module : undefined;
}

/** The first vectors [T, C], a parameter. */
export function firstVectors(model: Model, start: Start, seed: number, tools: AttachContext): Tensor {
  const { init, num_virtual_tokens: count, prompt_tuning_init_text: text } = start;
  using draws = new ParameterInit(seed);
  const drawn = !tools.loading && (init === 'TEXT' || init === 'SAMPLE_VOCAB');
  if (!drawn) return draws.normal([count, model.width], 1);
  using _ = scope();
  const table = tableOf(model);
  if (!table) {
    throw new GraftError('usage', 'this model reads no tokens whose vectors could be taken', {
      place: 'prompt_tuning_init',
      hint: 'Use RANDOM',
    });
  }
  using generator = new Generator(mixSeed(seed, 1));
  const ids =
    init === 'TEXT'
      ? idsOfText(text, 'prompt_tuning_init_text', tools, count)
      : Array.from(ops.rand([count], { generator }).data() as Float32Array, (u) => Math.floor(u * table.rows));
  const vectors = draws.full([count, model.width], 0);
  noGrad(() => ops.copy_(vectors, table.forward(Tensor.from(BigInt64Array.from(ids, BigInt)))));
  return vectors;
}

/** Few numbers move a model little at a matrix's rate; normal ones are not near any embedding, and hardly come there. */
export const slowStart = (what: string, random: boolean, instead: string) => (lr: number) => {
  if (lr > 1e-3) return [];
  return random
    ? [`a ${what} that begins at random hardly learns at a learning rate of ${lr}: ${instead}, or use more than 0.001`]
    : [`a ${what} learns slowly at a learning rate of ${lr}, as it is few numbers: 0.01 suits more`];
};

export const prompt: Method<PromptConfig> = {
  name: 'prompt',
  peftType: 'PROMPT_TUNING',
  config: promptConfig,

  attach(model, config, seed, tools = {}) {
    const { prompt_tuning_init_text: text } = config;
    const init = config.prompt_tuning_init ?? (text ? 'TEXT' : tableOf(model) ? 'SAMPLE_VOCAB' : 'RANDOM');
    const length =
      config.num_virtual_tokens ?? lengthOfText(init === 'TEXT' ? text : undefined, 'prompt_tuning_init_text', tools);
    requireSpace(model, length);
    const whole = { ...config, num_virtual_tokens: length };
    const vectors = new Vectors([length, model.width], firstVectors(model, { ...whole, init }, seed, tools));
    const port = { prompt: { length, vectors: () => vectors.value() } };
    return virtualAdapter(model, 'prompt', whole, vectors, port, {
      advise: slowStart('prompt', init === 'RANDOM' && !tools.loading, 'begin from a text (prompt_tuning_init: TEXT)'),
      savedConfig: (base) => ({ ...savedStart(init, config, base), prompt_tuning_init: init }),
    });
  },
};

/** PEFT does not load TEXT without the name of a tokenizer, though it then needs none. */
export const savedStart = (init: string, config: Omit<PromptConfig, 'prompt_tuning_init'>, base?: string) => ({
  prompt_tuning_init_text: config.prompt_tuning_init_text ?? null,
  tokenizer_name_or_path: config.tokenizer_name_or_path ?? (init === 'TEXT' ? base : null),
  tokenizer_kwargs: null,
});
