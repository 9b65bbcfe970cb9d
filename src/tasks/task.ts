import type { Example, Packed, Row, RowOptions } from '../data/index.ts';
import type { Model, TaskHead } from '../nn/index.ts';
import type { Tensor } from '../tensor/index.ts';
import type { Metric, RowLoss } from './metrics.ts';

/** How examples are made into rows. `maxLength`: longer rows are truncated, or continue in another window. */
export interface RowTools extends Omit<RowOptions, 'trainOn'> {
  /** Tokens that consecutive windows of one context share. */
  readonly stride: number;
  /** Whether each row needs its label, for training and measuring; for prediction it may lack one. */
  readonly labelled: boolean;
  /** The pixel values [channels · height · width] of an example's image; absent for a model of text. */
  readonly pixels?: ((example: Example) => Float32Array) | undefined;
  /** How many tokens the model makes of one image. */
  readonly imageTokens?: number | undefined;
}

/** The rows of one example, and how many of its tokens were truncated. */
export interface ExampleRows {
  readonly rows: readonly Row[];
  readonly cutTokens: number;
  /** Whether the example has an answer that none of the rows has whole. */
  readonly splitsAnswer?: boolean;
  /** Whether the example has several answers, of which the rows have the first. */
  readonly hasMoreAnswers?: boolean;
}

/** The settings of a task in a run. */
export interface TaskOptions {
  /** Weight of a class in the loss, by label; 1 for labels without one. */
  readonly classWeights?: Readonly<Record<string, number>> | undefined;
  /** embedding: divides the cosine similarities before the softmax. */
  readonly temperature?: number | undefined;
}

/** A confusion matrix: `counts[true class][predicted class]`. */
export interface Confusion {
  /** The names of the classes. */
  readonly labels: readonly string[];
  /** How often a class (first index) was predicted as a class (second index). */
  readonly counts: readonly (readonly number[])[];
}

/** The metrics of a task over labelled rows. */
export interface TaskMetrics {
  /** Each metric with its 95 % confidence interval. */
  readonly metrics: readonly Metric[];
  /** Of a first metric that is the share of things that are right: whether each of them is, in the order of the rows. */
  readonly hits?: readonly boolean[];
  /** Absent where the task has no classes. */
  readonly confusion?: Confusion;
}

/**
 * A task with a head: how examples become rows, what the loss is, and what is measured. `Output` is the type of the model's
 * output for one row.
 */
export interface Task<Output = unknown> {
  /** The task of the model's head, with its labels. */
  readonly head: TaskHead;
  /** Whether the loss compares the rows of a step with one another, so that they must be one batch. */
  readonly comparesRows?: boolean;
  /**
   * The rows of an example; none where nothing in it can be learned.
   * @throws GraftError with the place of an example that cannot be a row of this task
   */
  rows(example: Example, place: string, tools: RowTools): ExampleRows;
  /** What the sum of the losses is divided by: the number of predicted tokens or rows, or the sum of their weights. */
  units(batch: Packed): number;
  /** Sum of the losses of a packed batch, from its final hidden states [N, C]: a scalar, in nats for a likelihood. */
  lossSum(model: Model, hidden: Tensor, batch: Packed): Tensor;
  /** The loss of each row of a packed batch, where a row has one of its own and no metric says more. */
  rowLosses?(model: Model, hidden: Tensor, batch: Packed): RowLoss[];
  /** The output for each row of the batch, second texts of pairs included. Absent: only the loss is measured. */
  outputs?(model: Model, hidden: Tensor, batch: Packed): Output[];
  /** Names of all metrics that labelled rows may give. */
  readonly metricNames: readonly string[];
  /** The metrics over labelled rows, in their order. */
  metrics?(rows: readonly Row[], outputOf: (row: Row) => Output): TaskMetrics;
  /** The prediction for one example, as a line of a file of predictions, from the outputs for its rows. */
  prediction?(rows: readonly Row[], outputOf: (row: Row) => Output): Readonly<Record<string, unknown>>;
}
