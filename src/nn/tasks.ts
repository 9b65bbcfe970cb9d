/** What a model is loaded for, and how heads read hidden states. Letters: N packed tokens, R rows, C width. */
import { GraftError } from '../base/index.ts';
import { ops, Tensor } from '../tensor/index.ts';

export const taskNames = [
  'causal-lm',
  'sequence-classification',
  'token-classification',
  'question-answering',
  'image-classification',
  'embedding',
] as const;

export type TaskName = (typeof taskNames)[number];

/** The head that a model has. */
export interface TaskHead {
  readonly name: TaskName;
  /** By index; a single one of a sequence classification: regression. Empty where a task has none. */
  readonly labels: readonly string[];
}

/** hidden [N, C] → [R, C]: the last token of each row. */
export function lastOfRows(hidden: Tensor, rowStarts: readonly number[]): Tensor {
  return picked(
    hidden,
    rowStarts.slice(1).map((end) => end - 1),
  );
}

/** hidden [N, C] → [R, C]: the first token of each row. */
export const firstOfRows = (hidden: Tensor, rowStarts: readonly number[]): Tensor =>
  picked(hidden, rowStarts.slice(0, -1));

const picked = (hidden: Tensor, rows: readonly number[]): Tensor =>
  ops.indexSelect(hidden, 0, Tensor.from(BigInt64Array.from(rows, BigInt)));

/** hidden [N, C] → [R, C]: the mean over each row's tokens. */
export function meanOfRows(hidden: Tensor, rowStarts: readonly number[]): Tensor {
  return ops.stack(
    rowStarts.slice(1).map((end, r) => ops.meanDim(ops.narrow(hidden, 0, rowStarts[r]!, end - rowStarts[r]!), [0])),
  );
}

/** @throws GraftError 'usage' where the model was loaded for another task */
export function requireHead<T>(head: T | undefined, task: TaskName): T {
  if (head !== undefined) return head;
  throw new GraftError('usage', `the model was not loaded for ${task}`, { mend: `Load it with task: ${task}` });
}
