import type { ChatTemplate, Example, Packed, Row, Tokenizer } from '../data/index.ts';
import type { Model, TaskHead } from '../nn/index.ts';
import type { Tensor } from '../tensor/index.ts';
import type { Metric } from './metrics.ts';

/** What examples are made into rows with. */
export interface RowTools {
  readonly tokenizer: Tokenizer | undefined;
  readonly chat: ChatTemplate | undefined;
  readonly vocabSize: number;
  /** Tokens; what is longer is cut, or goes on in another window. */
  readonly maxLength: number;
  /** Tokens that two windows of one context share. */
  readonly stride: number;
  /** Rows are to be learned or measured, so each needs its label; without it rows may lack one. */
  readonly labelled: boolean;
  /** Makes an example's image what the model sees [channels · height · width]; absent where the model sees none. */
  readonly pixels?: ((example: Example) => Float32Array) | undefined;
  /** Tokens that one image comes to. */
  readonly imageTokens?: number | undefined;
}

/** The rows of one example, and how many tokens did not fit into them. */
export interface ExampleRows {
  readonly rows: readonly Row[];
  readonly cut: number;
}

/** What a run chooses about a task. */
export interface TaskOptions {
  /** By label: how much a row of it counts; 1 where none is named. */
  readonly classWeights?: Readonly<Record<string, number>> | undefined;
  /** embedding: similarities are divided by it before they are compared. */
  readonly temperature?: number | undefined;
}

/** How often each class was said (columns) of each that it is (rows). */
export interface Confusion {
  readonly labels: readonly string[];
  readonly counts: readonly (readonly number[])[];
}

export interface TaskMetrics {
  readonly metrics: readonly Metric[];
  /** Of a first metric that is the share of things that are right: whether each of them is, in the order of the rows. */
  readonly hits?: readonly boolean[];
  readonly confusion?: Confusion;
}

/**
 * A task at work on a head: what a row is, what is learned, and what is measured.
 * @typeParam A what the model says of one row
 */
export interface Task<A = unknown> {
  readonly head: TaskHead;
  /** The rows of a step are compared with one another, so that all are in memory at one time. */
  readonly together?: boolean;
  /**
   * The rows that an example becomes; none where nothing in it can be learned.
   * @throws GraftError 'input' with the place of what cannot be a row of this task
   */
  rows(example: Example, place: string, tools: RowTools): ExampleRows;
  /** What the sum of the losses is divided by: predicted tokens, rows, or their weights. */
  units(batch: Packed): number;
  /** Sum of the losses of a packed batch, given its final hidden states [N, C]: a scalar, in nats where it is a likelihood. */
  lossSum(model: Model, hidden: Tensor, batch: Packed): Tensor;
  /** What the model says of each row of the batch, seconds of pairs too. Absent: only the loss is measured. */
  outputs?(model: Model, hidden: Tensor, batch: Packed): A[];
  /** Of labelled rows in their order, and what was said of each. */
  metrics?(rows: readonly Row[], said: (row: Row) => A): TaskMetrics;
  /** What a file of predictions says of one example, from its rows and what was said of each. */
  prediction?(rows: readonly Row[], said: (row: Row) => A): Readonly<Record<string, unknown>>;
}
