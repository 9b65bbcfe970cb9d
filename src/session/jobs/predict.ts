import { writeFileSync } from 'node:fs';
import { requireNew } from '../../io/index.ts';
import { predict } from '../../tasks/index.ts';
import { type RowsArgs, rowsOfFile } from './evaluate.ts';

export interface PredictArgs extends RowsArgs {
  readonly out: string;
}

/** Writes what the model says of each row of a file: one line of JSON a row, in their order. */
export async function predictJob(args: PredictArgs) {
  requireNew(args.out);
  const { model, task, rows, report, batches, explained } = await rowsOfFile(args, false);
  const predictions = explained(() => predict(model, task, batches, rows));
  writeFileSync(args.out, predictions.map((prediction) => `${JSON.stringify(prediction)}\n`).join(''));
  return { task: task.head.name, rows: predictions.length, out: args.out, report };
}
