/** What jobs over rows share: the model, the task, and the rows made ready. */
import { type Format, type RowReport, type RowSource, recordsOf } from '../../data/index.ts';
import { useThreads } from '../../engine/index.ts';
import type { TaskName } from '../../nn/index.ts';
import { taskOf } from '../../tasks/index.ts';
import { examplesOf, explainedMeasurement, rowMaker, rowNotes } from '../../train/index.ts';
import type { JobContext } from '../job-context.ts';
import { residentOf } from '../resident.ts';

/** Options of everything that a model does with an adapter. */
export interface UseOptions {
  /** Name of an adapter of the model, or a directory. Default: none, the base alone. */
  readonly adapter?: string | undefined;
  /** Number of the task, of several that share a prompt, for rows that have none of their own. Default: as the adapter was saved. */
  readonly taskNumber?: number | undefined;
  /** Processor threads. Default: those that the model was loaded with, else all cores. */
  readonly threads?: number | undefined;
}

/** Options of rows that are measured or predicted. */
export interface RowsOptions extends UseOptions {
  /** Default: detected from each row's fields. */
  readonly format?: Format | undefined;
  /** causal-lm: whether the loss counts completions or every token. Default: completions. */
  readonly trainOn?: 'completion' | 'all' | undefined;
  /** Default: the task of the adapter or the checkpoint. */
  readonly task?: TaskName | undefined;
  /** Tokens of a row at most. Default: 1024. */
  readonly maxLength?: number | undefined;
  /** question-answering: tokens that two windows of a long context overlap by. Default: 128. */
  readonly stride?: number | undefined;
}

/** How far a job over rows is. */
export interface Progress {
  /** Always `progress`. */
  readonly type: 'progress';
  /** Batches or rows that are done. */
  readonly done: number;
  /** Batches or rows in all. */
  readonly total: number;
}

export type RowsArgs = RowsOptions & { readonly modelId: number; readonly rows: RowSource };

export type { RowReport };

/** The model with its adapter, and the rows as examples. */
export async function openRows(args: RowsArgs, context: Pick<JobContext, 'throwIfStopped'>) {
  const resident = residentOf(args.modelId);
  useThreads(args.threads ?? resident.threads);
  const model = resident.use(args.adapter, args.task, context);
  const records = await recordsOf(args.rows, 'rows');
  const examples = examplesOf(records, args.format ?? 'auto', resident.taskNumber(args.adapter, args.taskNumber));
  const maxLength = Math.min(args.maxLength ?? 1024, model.contextLength - model.ports.virtualLength);
  /** Runs `act`; a loss that is not finite is explained. */
  const explaining = <T>(act: () => T): T => {
    try {
      return act();
    } catch (error) {
      throw explainedMeasurement(error, model, args.adapter ?? resident.path);
    }
  };
  return { resident, model, task: taskOf(model.task), records, examples, maxLength, explaining };
}

/** What of the rows is truncated, left out or not used, in a note each. */
export const notesOf = (
  report: RowReport,
  { examples }: Pick<Awaited<ReturnType<typeof openRows>>, 'examples'>,
  rows: RowSource,
) => rowNotes(report, examples, typeof rows === 'string' ? rows : 'rows');

/** The function that makes rows of these examples. */
export const rowsOf = (
  {
    resident,
    model,
    task,
    examples,
    maxLength,
  }: Pick<Awaited<ReturnType<typeof openRows>>, 'resident' | 'model' | 'task' | 'examples' | 'maxLength'>,
  { trainOn = 'completion', stride = 128 }: RowsOptions,
  labelled: boolean,
) =>
  rowMaker(
    { task, model, modelPath: resident.path, tokenizer: resident.tokenizerIfAny, maxLength, trainOn, stride, labelled },
    examples,
  );
