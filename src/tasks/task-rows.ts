import { GraftError } from '../base/index.ts';
import {
  BadRows,
  type Example,
  isEmpty,
  ReportBuilder,
  type Row,
  type RowOptions,
  type RowReport,
  toRows,
} from '../data/index.ts';
import type { ExampleRows, RowTools, Task } from './task.ts';

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
  const report = new ReportBuilder();
  const bad = new BadRows();
  const rows: Row[] = [];
  const nothing: ExampleRows = { rows: [], cutTokens: 0 };
  const tools = { ...options, labelled: options.labelled ?? true };
  for (const { example, place } of examples) {
    const made = bad.try(() => (isEmpty(example) ? nothing : task.rows(example, place, tools)));
    if (!made) continue;
    report.cut(place, made.cutTokens);
    if (made.splitsAnswer) report.splitAnswer(place);
    if (made.hasMoreAnswers) report.severalAnswers(place);
    if (made.rows.length === 0 && made.cutTokens > 0) report.lost(place);
    else if (made.rows.length === 0) report.empty(place);
    rows.push(...made.rows.map((row) => withTask(row, example.task)));
  }
  bad.refuse();
  const result = report.of(rows.length);
  if (rows.length === 0) {
    const isAllEmpty = result.emptyRows > 0 && result.emptyRows === examples.length;
    const lacks =
      options.labelled === false
        ? 'content'
        : isAllEmpty
          ? 'content to learn or measure'
          : 'a label to learn or measure';
    throw new GraftError('input', `none of the rows has ${lacks}`, {
      hint: isAllEmpty
        ? 'Check the texts and labels; data.columns says which columns have them'
        : `Check the labels, and whether max_length ${options.maxLength} cuts them off`,
      data: { ...result },
    });
  }
  return { rows, report: result };
}
