import { GraftError } from '../../base/index.ts';
import { useThreads } from '../../engine/index.ts';
import { readJson, resolveModel, writeSafetensors } from '../../io/index.ts';
import type { Quantize } from '../../models/index.ts';
import { type Model, outputOf, packTokens } from '../../nn/index.ts';
import { noGrad, scope } from '../../tensor/index.ts';
import { residentModel, type TaskNumberArgs, taskNumberFor } from '../resident.ts';

export interface LogitsArgs extends TaskNumberArgs {
  readonly model: string;
  readonly ids: string;
  readonly out: string;
  readonly quantize?: Quantize;
  readonly threads?: number;
}

/** What the model's head says of each row (`Model.logits`), one row in memory at a time. */
export async function logitsJob(args: LogitsArgs) {
  const rows = readRows(args.ids);
  useThreads(args.threads);
  const model = residentModel(await resolveModel(args.model), args.quantize ?? 'none', args.adapter);
  if (model.image) {
    const hint = 'Use graft predict with images';
    throw new GraftError('usage', `${model.family} models see images, not ids`, { place: args.model, hint });
  }
  checkIds(rows, model.vocabSize, args.ids);
  const task = taskNumberFor(args);
  const compute = (row: readonly number[]): Uint8Array =>
    noGrad(() => {
      using _ = scope();
      return outputOf(model, packTokens([row], 0, [task])).bytes();
    });
  writeSafetensors(
    args.out,
    rows.map((row, i) => ({
      name: `logits.${i}`,
      dtype: 'float32' as const,
      shape: shapeOf(model, row.length),
      bytes: () => compute(row),
    })),
  );
  return { rows: rows.length, tokens: rows.reduce((sum, row) => sum + row.length, 0), out: args.out };
}

/** What a head says of a row of `length` tokens. */
function shapeOf({ task, vocabSize, width }: Model, length: number): number[] {
  switch (task.name) {
    case 'causal-lm':
      return [length, vocabSize];
    case 'token-classification':
    case 'question-answering':
      return [length, task.labels.length];
    case 'embedding':
      return [width];
    default:
      return [task.labels.length];
  }
}

function readRows(file: string): number[][] {
  const value = readJson(file);
  const good =
    Array.isArray(value) &&
    value.length > 0 &&
    value.every((row) => Array.isArray(row) && row.length > 0 && row.every(Number.isInteger));
  if (!good)
    throw new GraftError('usage', 'the ids must be rows of whole numbers, [[int]], none of them empty', {
      place: file,
    });
  return value as number[][];
}

function checkIds(rows: readonly (readonly number[])[], vocabSize: number, place: string): void {
  rows.forEach((row, r) => {
    const i = row.findIndex((id) => id < 0 || id >= vocabSize);
    if (i >= 0)
      throw new GraftError(
        'usage',
        `row ${r}, token ${i}: the id ${row[i]} is outside the vocabulary of ${vocabSize}`,
        { place },
      );
  });
}
