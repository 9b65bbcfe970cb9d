/** What heads of several families have in common. N packed tokens, R rows, C width. */
import { type LinearLayer, lastOfRowsBefore, type Model, pooledRows, requireHead, type TaskHead } from '../nn/index.ts';

/** Names that transformers gives the field with a task's output layer. */
const headFields = ['lm_head', 'score', 'classifier', 'qa_outputs'] as const;

type HeadFields = Partial<Record<(typeof headFields)[number], unknown>>;

/** The field of `head` that holds the output layer; undefined for a model without a head. */
export const headField = (head: HeadFields | undefined) => head && headFields.find((name) => head[name]);

/**
 * `Model.logits` of a decoder: its one output layer on every token, or, where rows are classified, on the last token of each
 * row that is not a pad (transformers `GenericForSequenceClassification`).
 * @param head reads its layer at each call, since methods may replace it; undefined: the task is `embedding`
 */
export const decoderLogits =
  (
    head: { readonly [field in keyof HeadFields]?: LinearLayer } | undefined,
    task: TaskHead,
    padTokenId: number | null | undefined,
  ): Model['logits'] =>
  (hidden, rowStarts, ids) => {
    if (!head) return pooledRows(hidden, rowStarts, task);
    const isRowwise = task.name === 'sequence-classification';
    const read = isRowwise ? lastOfRowsBefore(padTokenId, hidden, rowStarts, ids) : hidden;
    return head[headField(head)!]!.forward(read);
  };

/** What a model that is no causal language model has in the place of one's loss and cache: errors that say so. */
export const noCausalLm: Pick<Model, 'lossSum' | 'newCache'> = {
  lossSum: () => requireHead<never>(undefined, 'causal-lm'),
  newCache: () => requireHead<never>(undefined, 'causal-lm'),
};
