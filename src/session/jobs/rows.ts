/** What jobs over rows share: the model, the task, and the rows made ready. */
import { dataSettingsOf } from '../../adapters/index.ts';
import {
  type Format,
  nameOfSource,
  type RowReport,
  type RowSource,
  recordsOf,
  rowNotes,
  type Truncation,
} from '../../data/index.ts';
import { useThreads } from '../../engine/index.ts';
import type { TaskName } from '../../nn/index.ts';
import { taskOf, unusedSettings } from '../../tasks/index.ts';
import { examplesOf, explainedMeasurement, numberedRows, rowMaker, taskNotes } from '../../train/index.ts';
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

/** Options of rows that are measured or predicted. Where one is left out, it is as the adapter was trained. */
export interface RowsOptions extends UseOptions {
  /** The column of the file for each column of the format, where it has another name. */
  readonly columns?: Readonly<Record<string, string>> | undefined;
  /** Rows that are read at most: the first ones. */
  readonly limit?: number | undefined;
  /** What separates the fields of a .csv file. Default: found from its first lines. */
  readonly delimiter?: string | undefined;
  /** Where rows are cut that are too long. Default: at the end. */
  readonly truncate?: Truncation | undefined;
  /** Default: detected from each row's fields. */
  readonly format?: Format | undefined;
  /** causal-lm: whether the loss counts completions or every token. Default: completions. */
  readonly trainOn?: 'completion' | 'all' | undefined;
  /** Default: the task of the adapter or the checkpoint. */
  readonly task?: TaskName | undefined;
  /** Whether predictions repeat the fields of their rows. Default: only id and text. */
  readonly ownFields?: boolean | undefined;
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

/** The options with those that were saved with the adapter where they are left out. */
function withSaved(args: RowsArgs, resident: ReturnType<typeof residentOf>): RowsArgs {
  if (args.adapter === undefined) return args;
  const saved = dataSettingsOf(resident.dirOf(args.adapter));
  const { max_length: maxLength, train_on: trainOn, format, ...same } = saved;
  const defaults = {
    ...same,
    maxLength,
    trainOn,
    format: format === 'auto' || format === 'batches' ? undefined : format,
  };
  const given = Object.entries(args).filter(([, value]) => value !== undefined);
  return { ...defaults, ...Object.fromEntries(given) } as RowsArgs;
}

/** What is asked for, by the names of a recipe. */
const askedNames = ({ maxLength, trainOn, ...more }: RowsArgs): string[] =>
  Object.entries({ ...more, max_length: maxLength, train_on: trainOn, labels: undefined }).flatMap(([name, value]) =>
    value === undefined ? [] : [name],
  );

/** The model with its adapter, and the rows as examples. */
export async function openRows(asked: RowsArgs, context: Pick<JobContext, 'throwIfStopped'>) {
  const resident = residentOf(asked.modelId);
  useThreads(asked.threads ?? resident.threads);
  const args = withSaved(asked, resident);
  const model = resident.use(args.adapter, args.task, context);
  const notes: string[] = [...resident.notes, ...unusedSettings(askedNames(asked), model.task.name)];
  const { columns, limit, delimiter } = args;
  const reading = {
    columns,
    columnsMayLack: asked.columns === undefined,
    limit,
    delimiter,
    delimiterMayLack: asked.delimiter === undefined,
    note: (text: string) => notes.push(text),
  };
  const records = await recordsOf(args.rows, 'rows', reading);
  notes.push(...taskNotes(numberedRows(records), model));
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
  return { args, resident, model, task: taskOf(model.task), records, examples, maxLength, notes, explaining };
}

type OpenedRows = Awaited<ReturnType<typeof openRows>>;

/** What of the rows is truncated, left out or not used, in a note each. */
export const notesOf = (report: RowReport, { examples, notes, args, model }: OpenedRows) => [
  ...notes,
  ...rowNotes(
    report,
    examples.map(({ example }) => example),
    nameOfSource(args.rows, 'rows'),
    model.task.name,
  ),
];

/** The function that makes rows of these examples. */
export const rowsOf = ({ args, resident, model, task, examples, maxLength }: OpenedRows, labelled: boolean) =>
  rowMaker(
    {
      task,
      model,
      modelPath: resident.path,
      tokenizer: resident.tokenizerIfAny,
      maxLength,
      truncate: args.truncate,
      trainOn: args.trainOn ?? 'completion',
      stride: args.stride ?? 128,
      labelled,
    },
    examples,
  );
