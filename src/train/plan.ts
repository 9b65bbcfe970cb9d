import { GraftError } from '../base/index.ts';
import {
  ChatTemplate,
  type Example,
  type Format,
  type Row,
  type RowReport,
  readRecords,
  rowsOfStep,
  split,
  toExample,
  tokenizerIfAny,
  toStep,
  withTaskNumber,
} from '../data/index.ts';
import type { Model } from '../nn/index.ts';
import { imageTools, type Task, taskRows } from '../tasks/index.ts';
import type { Recipe } from './recipe.ts';

interface PlacedExample {
  readonly example: Example;
  readonly place: string;
}

/** The examples of a recipe's files: of one optimizer step each where the file says so, else of the whole file. */
export interface Examples {
  readonly train: readonly (readonly PlacedExample[])[];
  readonly eval: readonly PlacedExample[] | undefined;
}

/** Which rows each step learns from, and which are only measured. */
export interface Plan {
  readonly rows: number;
  /** Every row that steps learn from. */
  readonly learned: readonly Row[];
  readonly heldOut: readonly Row[];
  readonly steps: number;
  readonly stepsPerEpoch: number;
  rowsOf(step: number): readonly Row[];
  readonly warnings: readonly string[];
}

/**
 * Reads the files of a recipe.
 * @param taskNumber of rows that do not say theirs
 * @throws GraftError with file and line of what is wrong
 */
export async function readExamples({ data }: Recipe, taskNumber?: number): Promise<Examples> {
  const steps = data.format === 'batches';
  const read = async (file: string): Promise<PlacedExample[][]> => {
    const records = await readRecords(file);
    const format = data.format as Format | 'auto';
    const given = steps
      ? records.map(toStep)
      : [records.map((record) => ({ example: toExample(record, format), place: record.place }))];
    return given.map((rows) =>
      rows.map(({ example, place }) => ({ example: withTaskNumber(example, taskNumber), place })),
    );
  };
  return { train: await read(data.train), eval: data.eval === undefined ? undefined : (await read(data.eval)).flat() };
}

/** Tokenises and divides the examples of a recipe. @throws GraftError with file and line of what is wrong */
export async function planRows(
  recipe: Recipe,
  model: Model,
  modelPath: string,
  task: Task,
  examples: Examples,
): Promise<Plan> {
  const { data, train } = recipe;
  const explicit = data.format === 'batches' || data.format === 'tokens';
  const tokenizer = explicit ? undefined : tokenizerIfAny(modelPath);
  const options = {
    tokenizer,
    chat: tokenizer && ChatTemplate.of(tokenizer),
    vocabSize: model.vocabSize,
    maxLength: Math.min(data.max_length, model.contextLength - model.ports.virtualLength),
    trainOn: data.train_on,
    stride: data.stride,
    ...(await imageTools(model, modelPath, [...examples.train.flat(), ...(examples.eval ?? [])])),
  };
  const warnings: string[] = [];
  const rowsFrom = (given: readonly PlacedExample[], place: string): Row[] => {
    const { rows, report } = taskRows(task, given, options);
    warnings.push(...notes(report, place));
    return rows;
  };

  if (data.format === 'batches') {
    const steps = examples.train.map((given) => rowsFrom(given, given[0]!.place));
    return {
      rows: steps.reduce((sum, rows) => sum + rows.length, 0),
      learned: steps.flat(),
      heldOut: examples.eval ? rowsFrom(examples.eval, data.eval!) : [],
      steps: train.steps ?? Math.round(steps.length * train.epochs),
      stepsPerEpoch: steps.length,
      rowsOf: (step) => steps[step % steps.length]!,
      warnings,
    };
  }

  let rows = rowsFrom(examples.train.flat(), data.train);
  let heldOut: Row[] = [];
  if (examples.eval) heldOut = rowsFrom(examples.eval, data.eval!);
  else if (data.held_out) {
    // The windows of one long text stay on one side.
    const groups: Row[][] = [];
    for (const row of rows) {
      const last = groups.at(-1);
      if (last && row.example && last[0]!.example === row.example) last.push(row);
      else groups.push([row]);
    }
    const parts = split(groups.length, data.held_out, train.seed);
    heldOut = parts.heldOut.flatMap((i) => groups[i]!);
    const all = groups.length;
    rows = parts.train.flatMap((i) => groups[i]!);
    if (rows.length === 0 || heldOut.length === 0) {
      throw new GraftError(
        'usage',
        `held_out ${data.held_out} of ${all} rows leaves ${rows.length} to learn from and ${heldOut.length} to measure`,
        {
          place: 'data.held_out',
          hint: 'Give a share or a number that leaves rows on both sides',
        },
      );
    }
  }
  const stepsPerEpoch = Math.ceil(rows.length / train.batch_size);
  return {
    rows: rows.length,
    learned: rows,
    heldOut,
    steps: train.steps ?? Math.max(1, Math.round(stepsPerEpoch * train.epochs)),
    stepsPerEpoch,
    rowsOf: (step) => rowsOfStep(rows.length, train.batch_size, train.seed, step).map((i) => rows[i]!),
    warnings,
  };
}

function notes({ cutRows, cutTokens, emptyRows }: RowReport, place: string): string[] {
  return [
    ...(cutRows > 0 ? [`${place}: ${cutRows} rows were longer than max_length and lost ${cutTokens} tokens`] : []),
    ...(emptyRows > 0 ? [`${place}: ${emptyRows} rows have no token to learn and are left out`] : []),
  ];
}
