import { GraftError } from '../base/index.ts';
import {
  ChatTemplate,
  type Example,
  type Format,
  mapRows,
  nameOfSource,
  type RawRecord,
  type Row,
  type RowOptions,
  type RowReport,
  type RowSource,
  recordsOf,
  rowNotes,
  rowsOfStep,
  split,
  type Tokenizer,
  type Truncation,
  toExample,
  tokenizerIfAny,
  toStep,
  withTaskNumber,
} from '../data/index.ts';
import type { Model } from '../nn/index.ts';
import {
  type ClassCount,
  classCounts,
  classNotes,
  imageTools,
  numberedClasses,
  type Task,
  taskRows,
  unusedSettings,
} from '../tasks/index.ts';
import { dataDefaults, type Recipe } from './recipe.ts';

/** An example, and where it was read. */
export interface PlacedExample {
  readonly example: Example;
  readonly place: string;
}

/** The examples of a recipe: those of each optimizer step where the file says so, else one list of all. */
export interface Examples {
  readonly train: readonly (readonly PlacedExample[])[];
  readonly eval: readonly PlacedExample[] | undefined;
  /** What of the files was not read. */
  readonly notes: readonly string[];
  /** Rows that have a task number of their own. */
  readonly numbered: number;
}

/** Which rows each step learns from, and which are only measured. */
export interface Plan {
  /** Number of rows to learn from. */
  readonly rows: number;
  readonly trainRows: readonly Row[];
  /** The classes of the head, with the number of rows to learn from that have each; empty for tasks without. */
  readonly classes: readonly ClassCount[];
  readonly heldOut: readonly Row[];
  readonly stepsPerEpoch: number;
  /** The rows of step number `step`, 0-based. */
  rowsOf(step: number): readonly Row[];
  readonly warnings: readonly string[];
}

/**
 * Records as examples.
 * @param taskNumber of rows that have none of their own
 * @throws GraftError 'input' with the places of the first twenty records that are none
 */
export const examplesOf = (
  records: readonly RawRecord[],
  format: Format | 'auto',
  taskNumber: number | undefined,
): PlacedExample[] =>
  mapRows(records, (record) => ({
    example: withTaskNumber(toExample(record, format), taskNumber),
    place: record.place,
  }));

/**
 * Reads the rows of a recipe.
 * @param taskNumber of rows that have none of their own
 * @throws GraftError with file and line of what is wrong
 */
export async function readExamples({ data }: Recipe, taskNumber?: number): Promise<Examples> {
  const { format, columns, limit, delimiter } = data;
  const notes: string[] = [];
  let numbered = 0;
  const read = async (source: RowSource, name: string, areOthers = false): Promise<PlacedExample[][]> => {
    const records = await recordsOf(source, name, {
      columns,
      columnsMayLack: areOthers,
      limit,
      delimiter,
      delimiterMayLack: areOthers,
      note: (text) => notes.push(text),
    });
    numbered += numberedRows(records);
    if (format !== 'batches') return [examplesOf(records, format, taskNumber)];
    return mapRows(records, (record) =>
      toStep(record).map(({ example, place }) => ({ example: withTaskNumber(example, taskNumber), place })),
    );
  };
  const evalSteps = data.eval === undefined ? undefined : await read(data.eval, 'data.eval', true);
  return { train: await read(data.train, 'data.train'), eval: evalSteps?.flat(), notes, numbered };
}

/** What rows are made with, for training, measuring and predicting alike. */
export interface RowSettings {
  readonly task: Task;
  readonly model: Model;
  readonly modelPath: string;
  /** Undefined where the rows are ids or images. */
  readonly tokenizer: Tokenizer | undefined;
  /** Tokens of a row at most; the model's own limit holds in any case. */
  readonly maxLength: number;
  readonly truncate: Truncation | undefined;
  readonly trainOn: RowOptions['trainOn'];
  readonly stride: number;
  /** Whether rows need their labels. Default: true. */
  readonly labelled?: boolean;
}

/**
 * The function that makes rows of a task from examples.
 * @param examples all that it will be given: images are decoded beforehand
 */
export async function rowMaker(
  { task, model, modelPath, tokenizer, maxLength, ...settings }: RowSettings,
  examples: readonly PlacedExample[],
): Promise<(examples: readonly PlacedExample[]) => { rows: Row[]; report: RowReport }> {
  const options = {
    ...settings,
    tokenizer,
    chat: tokenizer && ChatTemplate.of(tokenizer),
    vocabSize: model.vocabSize,
    maxLength: Math.min(maxLength, model.contextLength - model.ports.virtualLength),
    ...(await imageTools(model, modelPath, examples)),
  };
  return (given) => taskRows(task, given, options);
}

/** How many rows have a task number of their own. */
export const numberedRows = (rows: readonly RawRecord[]): number =>
  rows.filter(({ value }) => Number.isInteger(value.task)).length;

/** A note on the task numbers of so many rows, where no prompt depends on them. */
export function taskNotes(numbered: number, model: Model): string[] {
  if (numbered === 0 || model.ports.readsTasks()) return [];
  return [
    `the field task of ${numbered} ${numbered === 1 ? 'row' : 'rows'} is not used: no prompt is for several tasks`,
  ];
}

/** A note on each field of a recipe that its task, or the other fields, leave without effect. */
function unusedFields({ data, labels, class_weights, temperature }: Recipe, { head }: Task): string[] {
  const defaults: Record<string, unknown> = dataDefaults;
  const asked = Object.entries({ ...data, labels, class_weights, temperature })
    .filter(([name, value]) => value !== undefined && value !== defaults[name])
    .map(([name]) => name);
  const others =
    data.eval !== undefined
      ? 'data.eval says what is measured'
      : data.format === 'batches' && 'all batches are learned';
  return [
    ...unusedSettings(asked, head.name),
    ...(data.held_out !== undefined && others ? [`data.held_out is not used: ${others}`] : []),
  ];
}

/** Tokenises the examples of a recipe and divides them into steps. @throws GraftError with file and line of what is wrong */
export async function planRows(
  recipe: Recipe,
  model: Model,
  modelPath: string,
  task: Task,
  examples: Examples,
): Promise<Plan> {
  const { data, train } = recipe;
  const needsNoTokenizer = data.format === 'batches' || data.format === 'tokens';
  const toRows = await rowMaker(
    {
      task,
      model,
      modelPath,
      tokenizer: needsNoTokenizer ? undefined : tokenizerIfAny(modelPath),
      maxLength: data.max_length,
      truncate: data.truncate,
      trainOn: data.train_on,
      stride: data.stride,
    },
    [...examples.train.flat(), ...(examples.eval ?? [])],
  );
  const warnings: string[] = [...examples.notes, ...unusedFields(recipe, task), ...taskNotes(examples.numbered, model)];
  const rowsFrom = (placed: readonly PlacedExample[], place: string): Row[] => {
    const { rows, report } = toRows(placed);
    const all = placed.map(({ example }) => example);
    const numbered = numberedClasses(task.head, all);
    warnings.push(...rowNotes(report, all, place, task.head.name), ...(numbered ? [`${place}: ${numbered}`] : []));
    return rows;
  };
  const classesOf = (trainRows: readonly Row[]) => {
    const classes = classCounts(task.head, trainRows);
    warnings.push(...classNotes(classes).map((note) => `${nameOfSource(data.train, 'data.train')}: ${note}`));
    return classes;
  };
  const evalRows = () => examples.eval && rowsFrom(examples.eval, nameOfSource(data.eval!, 'data.eval'));

  if (data.format === 'batches') {
    const steps = examples.train.map((placed) => rowsFrom(placed, placed[0]!.place));
    const trainRows = steps.flat();
    return {
      rows: trainRows.length,
      trainRows,
      classes: classesOf(trainRows),
      heldOut: evalRows() ?? [],
      stepsPerEpoch: steps.length,
      rowsOf: (step) => steps[step % steps.length]!,
      warnings,
    };
  }

  const allRows = rowsFrom(examples.train.flat(), nameOfSource(data.train, 'data.train'));
  const { trainRows, heldOut } =
    data.eval === undefined && data.held_out !== undefined
      ? splitRows(allRows, data.held_out, train.seed)
      : { trainRows: allRows, heldOut: evalRows() ?? [] };
  const stepsPerEpoch = Math.ceil(trainRows.length / train.batch_size);
  return {
    rows: trainRows.length,
    trainRows,
    classes: classesOf(trainRows),
    heldOut,
    stepsPerEpoch,
    rowsOf: (step) => rowsOfStep(trainRows.length, train.batch_size, train.seed, step).map((i) => trainRows[i]!),
    warnings,
  };
}

/** Rows to learn from, and `amount` of them (a share, or a number) held out. The windows of one long text stay on one side. */
function splitRows(rows: readonly Row[], amount: number, seed: number): { trainRows: Row[]; heldOut: Row[] } {
  const groups: Row[][] = [];
  for (const row of rows) {
    const last = groups.at(-1);
    if (last && row.example && last[0]!.example === row.example) last.push(row);
    else groups.push([row]);
  }
  const parts = split(groups.length, amount, seed);
  const [trainRows, heldOut] = [parts.train, parts.heldOut].map((indices) => indices.flatMap((i) => groups[i]!));
  if (trainRows!.length === 0 || heldOut!.length === 0) {
    throw new GraftError(
      'usage',
      `held_out ${amount} of ${groups.length} rows leaves ${trainRows!.length} to learn from and ${heldOut!.length} to measure`,
      { place: 'data.held_out', hint: 'Give a share or a number that leaves rows on both sides' },
    );
  }
  return { trainRows: trainRows!, heldOut: heldOut! };
}
