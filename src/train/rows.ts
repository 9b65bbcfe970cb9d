import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import {
  ChatTemplate,
  type Format,
  type Row,
  type RowReport,
  readRecords,
  rowsOfStep,
  split,
  toExample,
  tokenizerOf,
  toRows,
  toStep,
} from '../data/index.ts';
import type { Model } from '../nn/index.ts';
import type { Recipe } from './recipe.ts';

/** Which rows each step learns from, and which are only measured. */
export interface Plan {
  readonly rows: number;
  readonly heldOut: readonly Row[];
  readonly steps: number;
  readonly stepsPerEpoch: number;
  rowsOf(step: number): readonly Row[];
  readonly warnings: readonly string[];
}

/** Reads, tokenises and divides the data of a recipe. @throws GraftError with file and line of what is wrong */
export async function planRows(recipe: Recipe, model: Model, modelPath: string): Promise<Plan> {
  const { data, train } = recipe;
  const hasTokenizer = !statSync(modelPath).isDirectory() || existsSync(join(modelPath, 'tokenizer.json'));
  const explicit = data.format === 'batches' || data.format === 'tokens';
  const tokenizer = hasTokenizer && !explicit ? tokenizerOf(modelPath) : undefined;
  const options = {
    tokenizer,
    chat: tokenizer && ChatTemplate.of(tokenizer),
    vocabSize: model.vocabSize,
    maxLength: Math.min(data.max_length, model.contextLength),
    trainOn: data.train_on,
  };
  const warnings: string[] = [];
  const rowsFrom = async (file: string): Promise<Row[]> => {
    const records = await readRecords(file);
    const format = data.format as Format | 'auto';
    const { rows, report } = toRows(
      records.map((record) => ({ example: toExample(record, format), place: record.place })),
      options,
    );
    warnings.push(...notes(report, file));
    return rows;
  };

  if (data.format === 'batches') {
    const steps = (await readRecords(data.train)).map((record) => {
      const { rows, report } = toRows(toStep(record), options);
      warnings.push(...notes(report, record.place));
      return rows;
    });
    return {
      rows: steps.reduce((sum, rows) => sum + rows.length, 0),
      heldOut: data.eval
        ? (await readRecords(data.eval)).flatMap((record) => toRows(toStep(record), options).rows)
        : [],
      steps: train.steps ?? Math.round(steps.length * train.epochs),
      stepsPerEpoch: steps.length,
      rowsOf: (step) => steps[step % steps.length]!,
      warnings,
    };
  }

  let rows = await rowsFrom(data.train);
  let heldOut: Row[] = [];
  if (data.eval) heldOut = await rowsFrom(data.eval);
  else if (data.held_out) {
    const parts = split(rows.length, data.held_out, train.seed);
    heldOut = parts.heldOut.map((i) => rows[i]!);
    const all = rows.length;
    rows = parts.train.map((i) => rows[i]!);
    if (rows.length === 0 || heldOut.length === 0) {
      throw new GraftError(
        'usage',
        `held_out ${data.held_out} of ${all} rows leaves ${rows.length} to learn from and ${heldOut.length} to measure`,
        {
          place: 'data.held_out',
          mend: 'Give a share or a number that leaves rows on both sides',
        },
      );
    }
  }
  const stepsPerEpoch = Math.ceil(rows.length / train.batch_size);
  return {
    rows: rows.length,
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
