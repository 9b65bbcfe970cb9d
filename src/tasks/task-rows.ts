import { GraftError } from '../base/index.ts';
import { type Example, type Row, type RowOptions, type RowReport, toRows } from '../data/index.ts';
import type { RowTools, Task } from './task.ts';

/** The options for rows of language modelling, and for rows of all other tasks; `labelled` is true by default. */
export type TaskRowOptions = RowOptions & Omit<RowTools, 'labelled'> & { readonly labelled?: boolean };

/** The row, and its pair, with a task number. */
const withTask = (row: Row, task: number | undefined): Row =>
  task === undefined ? row : { ...row, task, ...(row.pair && { pair: { ...row.pair, task } }) };

/**
 * Makes the rows of a task.
 * @throws GraftError with the place of an example that cannot be a row; 'input' when no row is left
 */
export function taskRows(
  task: Task,
  examples: readonly { example: Example; place: string }[],
  options: TaskRowOptions,
): { rows: Row[]; report: RowReport } {
  if (task.head.name === 'causal-lm') return toRows(examples, options);
  const report: RowReport = { rows: 0, cutRows: 0, cutTokens: 0, emptyRows: 0, endlessRows: 0 };
  const rows: Row[] = [];
  for (const { example, place } of examples) {
    const tools = { ...options, labelled: options.labelled ?? true };
    const { rows: exampleRows, cutTokens } = task.rows(example, place, tools);
    if (exampleRows.length === 0) report.emptyRows++;
    if (cutTokens > 0) report.cutRows++;
    report.cutTokens += cutTokens;
    rows.push(...exampleRows.map((row) => withTask(row, example.task)));
  }
  report.rows = rows.length;
  if (rows.length === 0) {
    throw new GraftError('input', 'none of the rows has a label to learn or measure', {
      hint: `Check the labels, and whether max_length ${options.maxLength} cuts them off`,
      data: { ...report },
    });
  }
  return { rows, report };
}
