/** The methods that are compared where a comparison names none, with settings that learn on small models. */

/** A method to compare, with what it needs in the place of the common recipe. */
export interface Contender {
  readonly method: unknown;
  /** In the place of the common task: a method that needs a head, beside methods that write the answer. */
  readonly task?: string | undefined;
  /** Fields of `train` in the place of the common ones, above all the learning rate. */
  readonly train?: Readonly<Record<string, unknown>> | undefined;
}

/** What is known of the task before anything is loaded. */
export interface ComparisonContext {
  /** What prompts and prefixes begin from, where the recipe says it. */
  readonly text: string | undefined;
  /** The model writes one of these, which a head could say as well. */
  readonly answers: readonly string[] | undefined;
  readonly images: boolean;
}

const linear = { r: 8, lora_alpha: 16, target_modules: 'all-linear' };

/**
 * Learning rates differ by the nature of what is trained: a few numbers that are multiplied in need larger steps than whole
 * matrices (training.md §3.2 of the references; tried on the e-mails).
 */
export function contenders({ text: own, answers, images }: ComparisonContext): Readonly<Record<string, Contender>> {
  const text = own ?? (answers && `Read the text and say what it is: ${answers.join(' or ')}?`);
  // A text of one's own is taken whole: rows in the form of the chat, best.
  const length = { num_virtual_tokens: 20 };
  const virtual = own ? {} : length;
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
      train: { lr: text && !own ? 2e-2 : 1e-2 },
    },
    'p-tuning-v2': {
      method: { type: 'prefix', ...virtual, ...(text && { init_text: text }) },
      // The head that it trains beside the prefix bears less than a prefix alone.
      train: { lr: text ? 5e-3 : 1e-2 },
      ...(answers && { task: 'sequence-classification' }),
    },
    prompt: { method: { type: 'prompt', ...virtual, ...promptStart }, train: { lr: own ? 1e-2 : 3e-2 } },
    'p-tuning': { method: { type: 'p-tuning', ...length, encoder_hidden_size: 128 }, train: { lr: 3e-3 } },
  };
}
