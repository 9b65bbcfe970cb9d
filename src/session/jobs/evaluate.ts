import { GraftError } from '../../base/index.ts';
import { batchesOf, type Confusion, type Metric, measure, numberedClasses } from '../../tasks/index.ts';
import type { JobContext } from '../job-context.ts';
import { classifyRows } from './classify.ts';
import { notesOf, openRows, type Progress, type RowReport, type RowsArgs, rowsOf } from './rows.ts';

/** Loss and metrics of a model on rows. */
export interface EvaluateResult {
  /** The name of the task. */
  readonly task: string;
  /** Mean over the units of the task: in nats a predicted token for causal-lm. */
  readonly loss: number;
  /** e to the loss; null for every task but causal-lm. */
  readonly perplexity: number | null;
  /** Units of the loss: predicted tokens, rows, or their weights. */
  readonly tokens: number;
  /** Rows of tokens that were measured; a long context makes several. */
  readonly rows: number;
  /** Counts of rows made, truncated and left out. */
  readonly report: RowReport;
  /** What of the rows is truncated, left out or not used, in a sentence each. */
  readonly notes: readonly string[];
  /** Each with its 95 % confidence interval. */
  readonly metrics: readonly Metric[];
  /** Where the first metric is the share of rows that are right: whether each is, in the order of the rows. */
  readonly hits?: readonly boolean[];
  /** True classes (rows) by predicted classes (columns); null where the task has no classes. */
  readonly confusion: Confusion | null;
  /** causal-lm with `labels`: how often the likeliest label is the row's own. */
  readonly accuracy: Metric | null;
}

export type EvaluateArgs = RowsArgs & {
  /** causal-lm: the answers to choose among. */
  readonly labels?: readonly string[] | undefined;
};

/** Loss and metrics of a task over rows; of language modelling also perplexity, and accuracy among `labels`. */
export async function evaluate(args: EvaluateArgs, context: JobContext<Progress>): Promise<EvaluateResult> {
  const opened = await openRows(args, context);
  const { model, task, explaining } = opened;
  const generates = task.head.name === 'causal-lm';
  if (args.labels && !generates) {
    throw new GraftError(
      'usage',
      `labels are for language models; the labels of ${task.head.name} are those of its head`,
      {
        place: 'labels',
        hint: 'Leave labels out',
      },
    );
  }
  const classified = args.labels && classifyRows(opened, args.labels, context);
  const accuracy = classified?.accuracy ?? null;
  if (args.labels && !accuracy) {
    throw new GraftError('input', 'labels need rows that end in an answer: messages, or prompt and completion');
  }
  const { rows, report } = (await rowsOf(opened, true))(opened.examples);
  const numbered = numberedClasses(
    task.head,
    opened.examples.map(({ example }) => example),
  );
  const batches = batchesOf(task, rows, 1024, 32, model.ports.promptLength);
  const onBatch = (done: number, total: number) => {
    context.throwIfStopped();
    context.emit({ type: 'progress', done, total });
  };
  const { loss, units, metrics, confusion, hits } = explaining(() =>
    measure(model, task, batches, rows, { onBatch, byRow: true }),
  );
  return {
    task: task.head.name,
    loss,
    perplexity: generates ? Math.exp(loss) : null,
    tokens: units,
    rows: rows.length,
    report,
    notes: [...notesOf(report, opened), ...(numbered ? [numbered] : []), ...(classified?.notes ?? [])],
    metrics: accuracy ? [accuracy, ...metrics] : metrics,
    confusion: confusion ?? null,
    accuracy,
    ...(hits && { hits }),
  };
}
