/** The tasks that models have heads for, and how heads read hidden states. Letters: N packed tokens, R rows, C width. */
import { GraftError } from '../base/index.ts';
import { ops, Tensor } from '../tensor/index.ts';

/** The tasks that models have heads for. */
export const taskNames = [
  'causal-lm',
  'sequence-classification',
  'token-classification',
  'question-answering',
  'image-classification',
  'embedding',
] as const;

/** A task that a model can have a head for. */
export type TaskName = (typeof taskNames)[number];

/** The task of a model's head, with its labels. */
export interface TaskHead {
  /** The name of the task. */
  readonly name: TaskName;
  /**
   * Names of the classes by index; with a single one, sequence classification is regression. Empty for tasks without
   * labels.
   */
  readonly labels: readonly string[];
  /** Multi-label classification: a row may have several of the labels, or none. */
  readonly multiLabel?: boolean;
  /** embedding: how a row's hidden states become one vector; absent: the family's default. */
  readonly pooling?: Pooling;
  /** embedding: vectors are scaled to length 1. */
  readonly normalize?: boolean;
}

/** The kinds of pooling under sentence-transformers' names (`1_Pooling/config.json`). */
export const poolings = ['mean', 'cls', 'max', 'lasttoken'] as const;

/** How the hidden states of a row become one vector. */
export type Pooling = (typeof poolings)[number];

/** Returns the last token of each row: hidden [N, C] → [R, C]. */
function lastTokens(hidden: Tensor, rowStarts: readonly number[]): Tensor {
  return selectRows(
    hidden,
    rowStarts.slice(1).map((end) => end - 1),
  );
}

/**
 * Returns the last token of each row that is not `pad`, or its first token where all are: hidden [N, C] → [R, C]
 * (transformers `GenericForSequenceClassification`).
 */
export function lastTokensBeforePadding(
  pad: number | null | undefined,
  hidden: Tensor,
  rowStarts: readonly number[],
  ids?: Tensor,
): Tensor {
  if (pad == null || !ids) return lastTokens(hidden, rowStarts);
  const tokenIds = Array.from(ids.data() as BigInt64Array, Number);
  const lastTokenOf = rowStarts.slice(1).map((end, r) => {
    let token = end - 1;
    while (token > rowStarts[r]! && tokenIds[token] === pad) token--;
    return token;
  });
  return selectRows(hidden, lastTokenOf);
}

/** Returns the first token of each row: hidden [N, C] → [R, C]. */
export const firstTokens = (hidden: Tensor, rowStarts: readonly number[]): Tensor =>
  selectRows(hidden, rowStarts.slice(0, -1));

const selectRows = (hidden: Tensor, rows: readonly number[]): Tensor =>
  ops.indexSelect(hidden, 0, Tensor.from(BigInt64Array.from(rows, BigInt)));

/** Returns the mean over each row's tokens: hidden [N, C] → [R, C]. */
function meanTokens(hidden: Tensor, rowStarts: readonly number[]): Tensor {
  return ops.stack(
    rowStarts.slice(1).map((end, r) => ops.meanDim(ops.narrow(hidden, 0, rowStarts[r]!, end - rowStarts[r]!), [0])),
  );
}

/** Returns one vector for each row, pooled as the task says: hidden [N, C] → [R, C]. */
export function poolRows(
  hidden: Tensor,
  rowStarts: readonly number[],
  { pooling = 'mean', normalize = false }: Pick<TaskHead, 'pooling' | 'normalize'>,
): Tensor {
  const rows = poolers[pooling](hidden, rowStarts);
  if (!normalize) return rows;
  const squares = ops.sumDim(ops.mul(rows, rows), [-1], true);
  return ops.div(rows, ops.sqrt(ops.addScalar(squares, 1e-24)));
}

const poolers: Readonly<Record<Pooling, (hidden: Tensor, rowStarts: readonly number[]) => Tensor>> = {
  mean: meanTokens,
  cls: firstTokens,
  lasttoken: lastTokens,
  max: (hidden, rowStarts) =>
    ops.stack(
      rowStarts.slice(1).map((end, r) => ops.amax(ops.narrow(hidden, 0, rowStarts[r]!, end - rowStarts[r]!), [0])),
    ),
};

/** Returns `head`. @throws GraftError 'usage' where it is undefined, since the model was loaded for another task */
export function requireHead<T>(head: T | undefined, task: TaskName): T {
  if (head !== undefined) return head;
  throw new GraftError('usage', `the model was not loaded for ${task}`, { hint: `Load it with task: ${task}` });
}
