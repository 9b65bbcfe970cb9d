/** The tasks that models have heads for, and how heads read hidden states. Letters: N packed tokens, R rows, C width. */
import { GraftError } from '../base/index.ts';
import { ops, Tensor, widened } from '../tensor/index.ts';

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
  /** embedding: how a row's hidden states become one vector; absent: mean. Several: their vectors, one after the other. */
  readonly pooling?: Pooling | readonly Pooling[];
  /** embedding: vectors are scaled to length 1. */
  readonly normalize?: boolean;
  /** embedding: how many of the first numbers of a vector are kept, after scaling; absent: all. */
  readonly dimensions?: number;
  /** embedding: what is put before every text. */
  readonly prompt?: string;
  /** embedding: texts are read in lower case. */
  readonly lowercase?: boolean;
}

/** The kinds of pooling under sentence-transformers' names (`1_Pooling/config.json`). */
export const poolings = ['cls', 'max', 'mean', 'mean_sqrt_len_tokens', 'weightedmean', 'lasttoken'] as const;

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
  const places = ops.arange(0, ids.size(0), 1, { dtype: 'int64', device: ids.device });
  const unpadded = ops.maskedFill(places, ops.eqScalar(ids, pad), -1);
  const lastTokenOf = rowStarts.slice(1).map((end, r) => {
    const start = rowStarts[r]!;
    return ops.clampMin(ops.amax(ops.narrow(unpadded, 0, start, end - start), [0]), start);
  });
  return ops.indexSelect(hidden, 0, ops.stack(lastTokenOf));
}

/** Returns the first token of each row: hidden [N, C] → [R, C]. */
export const firstTokens = (hidden: Tensor, rowStarts: readonly number[]): Tensor =>
  selectRows(hidden, rowStarts.slice(0, -1));

const selectRows = (hidden: Tensor, rows: readonly number[]): Tensor =>
  ops.indexSelect(hidden, 0, Tensor.from(BigInt64Array.from(rows, BigInt)));

/** Returns what `pool` makes of each row's tokens [T, C] → [C]: hidden [N, C] → [R, C]. */
const byRow =
  (pool: (tokens: Tensor, length: number) => Tensor) =>
  (hidden: Tensor, rowStarts: readonly number[]): Tensor =>
    ops.stack(
      rowStarts.slice(1).map((end, r) => {
        const length = end - rowStarts[r]!;
        return pool(ops.narrow(hidden, 0, rowStarts[r]!, length), length);
      }),
    );

/** Returns the mean of tokens [T, C] in which the token at i, from 1, counts i times. */
function weightedMean(tokens: Tensor, length: number): Tensor {
  const share = (i: number) => (2 * (i + 1)) / (length * (length + 1));
  const weights = Tensor.from(
    Float32Array.from({ length }, (_, i) => share(i)),
    [length, 1],
    tokens.dtype,
  );
  return ops.sumDim(ops.mul(tokens, weights), [0]);
}

/** Returns one vector for each row, pooled as the task says: hidden [N, C] → [R, C], or a multiple of C for several poolings. */
export function poolRows(
  hidden: Tensor,
  rowStarts: readonly number[],
  { pooling = 'mean', normalize = false, dimensions }: Pick<TaskHead, 'pooling' | 'normalize' | 'dimensions'>,
): Tensor {
  const wide = widened(hidden);
  const parts = [pooling].flat().map((name) => poolers[name](wide, rowStarts));
  let rows = parts.length === 1 ? parts[0]! : ops.cat(parts, -1);
  if (normalize) {
    const squares = ops.sumDim(ops.mul(rows, rows), [-1], true);
    rows = ops.div(rows, ops.sqrt(ops.addScalar(squares, 1e-24)));
  }
  if (dimensions === undefined || dimensions >= rows.size(-1)) return rows;
  return ops.contiguous(ops.narrow(rows, -1, 0, dimensions));
}

const poolers: Readonly<Record<Pooling, (hidden: Tensor, rowStarts: readonly number[]) => Tensor>> = {
  cls: firstTokens,
  max: byRow((tokens) => ops.amax(tokens, [0])),
  mean: byRow((tokens) => ops.meanDim(tokens, [0])),
  mean_sqrt_len_tokens: byRow((tokens, length) => ops.divScalar(ops.sumDim(tokens, [0]), Math.sqrt(length))),
  weightedmean: byRow(weightedMean),
  lasttoken: lastTokens,
};

/** Returns `head`. @throws GraftError 'usage' where it is undefined, since the model was loaded for another task */
export function requireHead<T>(head: T | undefined, task: TaskName): T {
  if (head !== undefined) return head;
  throw new GraftError('usage', `the model was not loaded for ${task}`, { hint: `Load it with task: ${task}` });
}
