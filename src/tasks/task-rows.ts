import { GraftError } from '../base/index.ts';
import { type Example, type Row, type RowOptions, type RowReport, toRows } from '../data/index.ts';
import type { RowTools, Task } from './task.ts';

/** Both ways to rows need: of texts to be written, and of what a head says. */
export type TaskRowOptions = RowOptions & Omit<RowTools, 'labelled'> & { readonly labelled?: boolean };

const ofTask = (row: Row, task: number | undefined): Row =>
  task === undefined ? row : { ...row, task, ...(row.pair && { pair: { ...row.pair, task } }) };

/** Examples as rows of their task. @throws GraftError 'input' with the place of what cannot be a row; when no row is left */
export function taskRows(
  task: Task,
  examples: readonly { example: Example; place: string }[],
  options: TaskRowOptions,
): { rows: Row[]; report: RowReport } {
  if (task.head.name === 'causal-lm') return toRows(examples, options);
  const report: RowReport = { rows: 0, cutRows: 0, cutTokens: 0, emptyRows: 0 };
  const rows: Row[] = [];
  for (const { example, place } of examples) {
    const made = task.rows(example, place, { ...options, labelled: options.labelled ?? true });
    if (made.rows.length === 0) report.emptyRows++;
    if (made.cut > 0) report.cutRows++;
    report.cutTokens += made.cut;
    rows.push(...made.rows.map((row) => ofTask(row, example.task)));
  }
  report.rows = rows.length;
  if (rows.length === 0) {
    throw new GraftError('input', 'there are no rows that can be learned or measured', { data: { ...report } });
  }
  return { rows, report };
}
