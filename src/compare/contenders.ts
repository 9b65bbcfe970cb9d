/** Presets: the methods that are compared if a comparison names none, with settings that work on small models. */

/** A method to compare, with the settings that override the common recipe. */
export interface Contender {
  readonly method: unknown;
  /** Overrides the common task: for a method that needs a head, where the others generate the answer. */
  readonly task?: string | undefined;
  /** Fields of `train` that override the common ones, above all the learning rate. */
  readonly train?: Readonly<Record<string, unknown>> | undefined;
}

/** What the presets depend on. */
export interface ComparisonContext {
  /** Initial text of prompts and prefixes, from the field `compare.text`. */
  readonly text: string | undefined;
  /** The possible answers of a language model, from the field `compare.answers`; a head has them as its labels. */
  readonly answers: readonly string[] | undefined;
  readonly images: boolean;
}

const linear = { r: 8, lora_alpha: 16, target_modules: 'all-linear' };

/**
 * Returns the presets by name. Learning rates depend on what is trained: a few scaling factors need larger steps than matrices do
 * (chosen on the e-mails; docs/log.md).
 */
export function contenders({
  text: givenText,
  answers,
  images,
}: ComparisonContext): Readonly<Record<string, Contender>> {
  const text = givenText ?? (answers && `Read the text and say what it is: ${answers.join(' or ')}?`);
  const length = { num_virtual_tokens: 20 };
  // A given text decides how many virtual tokens there are.
  const virtual = givenText ? {} : length;
  const promptStart = text
    ? { prompt_tuning_init: 'TEXT', prompt_tuning_init_text: text }
    : { prompt_tuning_init: images ? 'RANDOM' : 'SAMPLE_VOCAB' };
  return {
    full: { method: { type: 'full' }, train: { lr: 1e-4 } },
    lora: { method: { type: 'lora', ...linear }, train: { lr: 1e-3 } },
    dora: { method: { type: 'lora', ...linear, use_dora: true }, train: { lr: 1e-3 } },
    adalora: {
      method: { type: 'adalora', init_r: 12, target_r: 8, target_modules: 'all-linear' },
      train: { lr: 2e-3 },
    },
    ia3: { method: { type: 'ia3' }, train: { lr: 1e-2 } },
    'seq-bn': { method: { type: 'bottleneck', config: 'seq_bn' }, train: { lr: 1e-3 } },
    'double-seq-bn': { method: { type: 'bottleneck', config: 'double_seq_bn' }, train: { lr: 1e-3 } },
    'par-bn': { method: { type: 'bottleneck', config: 'par_bn', reduction_factor: 16 }, train: { lr: 3e-4 } },
    compacter: {
      method: { type: 'bottleneck', config: 'compacter', reduction_factor: 16 },
      train: { lr: 3e-3 },
    },
    prefix: {
      method: { type: 'prefix', ...virtual, ...(text ? { init_text: text } : { init_weights: 'zero' }) },
      train: { lr: text && !givenText ? 2e-2 : 1e-2 },
    },
    'p-tuning-v2': {
      method: { type: 'prefix', ...virtual, ...(text && { init_text: text }) },
      // The head that is trained with the prefix needs a lower rate than a prefix alone.
      train: { lr: text ? 5e-3 : 1e-2 },
      ...(answers && { task: 'sequence-classification' }),
    },
    prompt: { method: { type: 'prompt', ...virtual, ...promptStart }, train: { lr: givenText ? 1e-2 : 3e-2 } },
    'p-tuning': { method: { type: 'p-tuning', ...length, encoder_hidden_size: 128 }, train: { lr: 3e-3 } },
  };
}
