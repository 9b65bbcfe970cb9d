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
  /** A row may have several of the labels, or none. */
  readonly multiLabel?: boolean;
  /** embedding: how a row's hidden states become one vector; absent: as the family does it. */
  readonly pooling?: Pooling;
  /** embedding: vectors have the length 1. */
  readonly normalize?: boolean;
}

/** Under the names of sentence-transformers (`1_Pooling/config.json`). */
export const poolings = ['mean', 'cls', 'max', 'lasttoken'] as const;

export type Pooling = (typeof poolings)[number];

/** hidden [N, C] → [R, C]: the last token of each row. */
function lastOfRows(hidden: Tensor, rowStarts: readonly number[]): Tensor {
  return picked(
    hidden,
    rowStarts.slice(1).map((end) => end - 1),
  );
}

/**
 * hidden [N, C] → [R, C]: the last token of each row that is not `pad`, the row's first where all are
 * (transformers `GenericForSequenceClassification`).
 */
export function lastOfRowsBefore(
  pad: number | null | undefined,
  hidden: Tensor,
  rowStarts: readonly number[],
  ids?: Tensor,
): Tensor {
  if (pad == null || !ids) return lastOfRows(hidden, rowStarts);
  const row = Array.from(ids.data() as BigInt64Array, Number);
  const last = rowStarts.slice(1).map((end, r) => {
    let at = end - 1;
    while (at > rowStarts[r]! && row[at] === pad) at--;
    return at;
  });
  return picked(hidden, last);
}

/** hidden [N, C] → [R, C]: the first token of each row. */
export const firstOfRows = (hidden: Tensor, rowStarts: readonly number[]): Tensor =>
  picked(hidden, rowStarts.slice(0, -1));

const picked = (hidden: Tensor, rows: readonly number[]): Tensor =>
  ops.indexSelect(hidden, 0, Tensor.from(BigInt64Array.from(rows, BigInt)));

/** hidden [N, C] → [R, C]: the mean over each row's tokens. */
function meanOfRows(hidden: Tensor, rowStarts: readonly number[]): Tensor {
  return ops.stack(
    rowStarts.slice(1).map((end, r) => ops.meanDim(ops.narrow(hidden, 0, rowStarts[r]!, end - rowStarts[r]!), [0])),
  );
}

/** hidden [N, C] → [R, C]: one vector a row, as the task asks. */
export function pooledRows(
  hidden: Tensor,
  rowStarts: readonly number[],
  { pooling = 'mean', normalize = false }: Pick<TaskHead, 'pooling' | 'normalize'>,
): Tensor {
  const rows = pools[pooling](hidden, rowStarts);
  if (!normalize) return rows;
  const squares = ops.sumDim(ops.mul(rows, rows), [-1], true);
  return ops.div(rows, ops.sqrt(ops.addScalar(squares, 1e-24)));
}

const pools: Readonly<Record<Pooling, (hidden: Tensor, rowStarts: readonly number[]) => Tensor>> = {
  mean: meanOfRows,
  cls: firstOfRows,
  lasttoken: lastOfRows,
  max: (hidden, rowStarts) =>
    ops.stack(
      rowStarts.slice(1).map((end, r) => ops.amax(ops.narrow(hidden, 0, rowStarts[r]!, end - rowStarts[r]!), [0])),
    ),
};

/** @throws GraftError 'usage' where the model was loaded for another task */
export function requireHead<T>(head: T | undefined, task: TaskName): T {
  if (head !== undefined) return head;
  throw new GraftError('usage', `the model was not loaded for ${task}`, { hint: `Load it with task: ${task}` });
}
