/** The parts of task heads that several families share. */
import {
  type LinearLayer,
  lastTokensBeforePadding,
  type Model,
  poolRows,
  requireHead,
  type TaskHead,
} from '../nn/index.ts';

/** transformers' names of the field that holds the output layer. */
const headFields = ['lm_head', 'score', 'classifier', 'qa_outputs'] as const;

type HeadFields = Partial<Record<(typeof headFields)[number], unknown>>;

/** Returns the field of `head` that holds the output layer; undefined for a model without a head. */
export const headField = (head: HeadFields | undefined) => head && headFields.find((name) => head[name]);

/**
 * Returns `Model.logits` of a decoder: its output layer on every token, or, where rows are classified, on the last token of
 * each row before its padding (transformers `GenericForSequenceClassification`).
 * @param head its layer is looked up at each call, since methods may replace it; undefined: the task is `embedding`
 */
export const decoderLogits =
  (
    head: { readonly [field in keyof HeadFields]?: LinearLayer } | undefined,
    task: TaskHead,
    padTokenId: number | null | undefined,
  ): Model['logits'] =>
  (hidden, rowStarts, ids) => {
    if (!head) return poolRows(hidden, rowStarts, task);
    const outputLayer = head[headField(head)!]!;
    if (task.name !== 'sequence-classification') return outputLayer.forward(hidden);
    return outputLayer.forward(lastTokensBeforePadding(padTokenId, hidden, rowStarts, ids));
  };

/** The loss of models that are not causal language models: it throws. */
export const noCausalLm: Pick<Model, 'lossSum'> = {
  lossSum: () => requireHead<never>(undefined, 'causal-lm'),
};
