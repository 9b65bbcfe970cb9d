import { GraftError } from '../base/index.ts';
import {
  ChatTemplate,
  type Example,
  type Format,
  type RawRecord,
  type Row,
  type RowOptions,
  type RowReport,
  type RowSource,
  recordsOf,
  rowsOfStep,
  split,
  type Tokenizer,
  toExample,
  tokenizerIfAny,
  toStep,
  unusedNotes,
  withTaskNumber,
} from '../data/index.ts';
import type { Model } from '../nn/index.ts';
import { imageTools, type Task, taskRows } from '../tasks/index.ts';
import type { Recipe } from './recipe.ts';

/** An example, and where it was read. */
export interface PlacedExample {
  readonly example: Example;
  readonly place: string;
}

/** The examples of a recipe: those of each optimizer step where the file says so, else one list of all. */
export interface Examples {
  readonly train: readonly (readonly PlacedExample[])[];
  readonly eval: readonly PlacedExample[] | undefined;
}

/** Which rows each step learns from, and which are only measured. */
export interface Plan {
  /** Number of rows to learn from. */
  readonly rows: number;
  readonly trainRows: readonly Row[];
  readonly heldOut: readonly Row[];
  readonly stepsPerEpoch: number;
  /** The rows of step number `step`, 0-based. */
  rowsOf(step: number): readonly Row[];
  readonly warnings: readonly string[];
}

/** Records as examples. @param taskNumber of rows that have none of their own @throws GraftError 'input' with the place */
export const examplesOf = (
  records: readonly RawRecord[],
  format: Format | 'auto',
  taskNumber: number | undefined,
): PlacedExample[] =>
  records.map((record) => ({
    example: withTaskNumber(toExample(record, format), taskNumber),
    place: record.place,
  }));

/**
 * Reads the rows of a recipe.
 * @param taskNumber of rows that have none of their own
 * @throws GraftError with file and line of what is wrong
 */
export async function readExamples({ data }: Recipe, taskNumber?: number): Promise<Examples> {
  const { format } = data;
  const read = async (source: RowSource, name: string): Promise<PlacedExample[][]> => {
    const records = await recordsOf(source, name);
    if (format !== 'batches') return [examplesOf(records, format, taskNumber)];
    return records.map((record) =>
      toStep(record).map(({ example, place }) => ({ example: withTaskNumber(example, taskNumber), place })),
    );
  };
  const evalSteps = data.eval === undefined ? undefined : await read(data.eval, 'data.eval');
  return { train: await read(data.train, 'data.train'), eval: evalSteps?.flat() };
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
      trainOn: data.train_on,
      stride: data.stride,
    },
    [...examples.train.flat(), ...(examples.eval ?? [])],
  );
  const warnings: string[] = [];
  const rowsFrom = (placed: readonly PlacedExample[], place: string): Row[] => {
    const { rows, report } = toRows(placed);
    warnings.push(...rowNotes(report, placed, place));
    return rows;
  };
  const placeOf = (source: RowSource, name: string) => (typeof source === 'string' ? source : name);
  const evalRows = () => examples.eval && rowsFrom(examples.eval, placeOf(data.eval!, 'data.eval'));

  if (data.format === 'batches') {
    const steps = examples.train.map((placed) => rowsFrom(placed, placed[0]!.place));
    const trainRows = steps.flat();
    return {
      rows: trainRows.length,
      trainRows,
      heldOut: evalRows() ?? [],
      stepsPerEpoch: steps.length,
      rowsOf: (step) => steps[step % steps.length]!,
      warnings,
    };
  }

  const allRows = rowsFrom(examples.train.flat(), placeOf(data.train, 'data.train'));
  const { trainRows, heldOut } =
    data.eval === undefined && data.held_out !== undefined
      ? splitRows(allRows, data.held_out, train.seed)
      : { trainRows: allRows, heldOut: evalRows() ?? [] };
  const stepsPerEpoch = Math.ceil(trainRows.length / train.batch_size);
  return {
    rows: trainRows.length,
    trainRows,
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

/** What of the rows is truncated, left out or not used, in a note each. */
export function rowNotes(
  { cutRows, cutTokens, emptyRows, endlessRows, notPrinted = {} }: RowReport,
  placed: readonly PlacedExample[],
  place: string,
): string[] {
  const examples = placed.map(({ example }) => example);
  return [
    ...(cutRows > 0
      ? [
          `${place}: ${cutRows} ${cutRows === 1 ? 'row was' : 'rows were'} longer than max_length; ${cutTokens} tokens were cut`,
        ]
      : []),
    ...(emptyRows > 0
      ? [
          `${place}: ${emptyRows} ${emptyRows === 1 ? 'row has no token to learn and is' : 'rows have no token to learn and are'} left out`,
        ]
      : []),
    ...(endlessRows > 0
      ? [
          `${place}: ${endlessRows} rows have no end token, from which the model would learn where to stop: no file of the model names one (eos_token, eos_token_id)`,
        ]
      : []),
    ...Object.entries(notPrinted).map(
      ([what, rows]) => `${place}: the chat template leaves out ${what} of ${rows} ${rows === 1 ? 'row' : 'rows'}`,
    ),
    ...unusedNotes(examples, place),
  ];
}
