import { type Example, ReportBuilder, type Row, type RowReport } from '../../data/index.ts';
import { batchesOf, predict as predictRows } from '../../tasks/index.ts';
import type { JobContext } from '../job-context.ts';
import { type Identity, identityOf } from './identity.ts';
import { notesOf, openRows, type RowsArgs, rowsOf } from './rows.ts';

/** The prediction for one row; which fields it has depends on the task. */
export interface Prediction extends Identity {
  /** sequence-classification, image-classification: the likeliest class. */
  readonly label?: string;
  /** Of several classes at a time: all that are likelier than not. */
  readonly labels?: readonly string[];
  /** By class. */
  readonly probabilities?: Readonly<Record<string, number>>;
  /** Regression. */
  readonly value?: number;
  /** token-classification: one for each word; null for a word that was cut off. */
  readonly tags?: readonly (string | null)[];
  /** question-answering: the text of the answer; '' for none. */
  readonly answer?: string;
  /** question-answering: where the answer begins in the context, in UTF-16 units. */
  readonly start?: number;
  /** question-answering: where the answer ends in the context, in UTF-16 units. */
  readonly end?: number;
  /** question-answering: the score of the answer compared with no answer. */
  readonly score?: number;
  /** embedding: the vector of the text. */
  readonly embedding?: readonly number[];
  /** embedding, rows of two texts: the vector of the second. */
  readonly embeddingPair?: readonly number[];
  /** embedding, rows of two texts: the cosine of the two vectors. */
  readonly similarity?: number;
  /** Why the row has no prediction. */
  readonly skipped?: string;
}

/** The predictions for all rows. */
export interface PredictResult {
  /** The name of the task. */
  readonly task: string;
  /** In the order of the rows, one for each. */
  readonly predictions: readonly Prediction[];
  /** Tokens that were read, special ones included. */
  readonly tokens: number;
  /** Counts of rows made, truncated and left out. */
  readonly report: RowReport;
  /** What of the rows is truncated, left out or not used, in a sentence each. */
  readonly notes: readonly string[];
}

/** Rows that are predicted before their predictions are told. */
const chunk = 256;

/** Predicts every row with the model's head. Emits the predictions in the order of the rows. */
export async function predict(args: RowsArgs, context: JobContext<Prediction>): Promise<PredictResult> {
  const opened = await openRows(args, context);
  const { model, task, records, examples, explaining } = opened;
  if (examples.length === 0) {
    return { task: task.head.name, predictions: [], tokens: 0, report: new ReportBuilder().of(0), notes: [] };
  }
  const { rows, report } = (await rowsOf(opened, false))(examples);
  const byExample = Map.groupBy(rows, ({ example }) => example as Example | undefined);
  const predictions: Prediction[] = [];
  for (let first = 0; first < examples.length; first += chunk) {
    const group = examples.slice(first, first + chunk);
    const groupRows = group.flatMap(({ example }): Row[] => byExample.get(example) ?? []);
    const batches = batchesOf(task, groupRows, 1024, 32, model.ports.promptLength);
    const found = explaining(() => predictRows(model, task, batches, groupRows, () => context.throwIfStopped()));
    for (const [i, { example }] of group.entries()) {
      const identity = identityOf(records[first + i]!, example, args.ownFields);
      const prediction = byExample.has(example) ? found.shift()! : { skipped: 'the row has nothing to predict' };
      predictions.push({ ...identity, ...prediction });
      context.emit(predictions.at(-1)!);
    }
  }
  const tokens = rows.reduce((sum, { ids }) => sum + ids.length, 0);
  return { task: task.head.name, predictions, tokens, report, notes: notesOf(report, opened) };
}
