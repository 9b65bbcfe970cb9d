import { GraftError } from '../../base/index.ts';
import { useThreads } from '../../engine/index.ts';
import { writeSafetensors } from '../../io/index.ts';
import { type Model, outputOf, packTokens } from '../../nn/index.ts';
import { noGrad, scope } from '../../tensor/index.ts';
import type { JobContext } from '../job-context.ts';
import { residentOf } from '../resident.ts';
import type { UseOptions } from './rows.ts';

/** What the model's head gives for one row, float32, the last axis contiguous. */
export interface Logits {
  /** [T, V] for causal-lm, [T, L] for tags, [T, 2] for question answering, [L] for a classification, [C] for an embedding. */
  readonly shape: readonly number[];
  /** The numbers, in row-major order. */
  readonly data: Float32Array;
}

/** Rows of token ids, none of them empty. */
export type IdRows = readonly (readonly number[])[];

export type LogitsArgs = UseOptions & { readonly modelId: number; readonly ids: IdRows };

/** The head's output for each row (`Model.logits`). */
export function logits(args: LogitsArgs, context: JobContext): Logits[] {
  const { compute, shapes } = openIds(args, context);
  return args.ids.map((row, i) => {
    const bytes = compute(row);
    return { shape: shapes[i]!, data: new Float32Array(bytes.slice().buffer) };
  });
}

/** As `logits`, into a safetensors file, as `logits.0`, `logits.1` …; one row is in memory at a time. */
export function writeLogits(args: LogitsArgs & { readonly out: string }, context: JobContext) {
  const { compute, shapes } = openIds(args, context);
  const tensors = args.ids.map((row, i) => ({
    name: `logits.${i}`,
    dtype: 'float32' as const,
    shape: shapes[i]!,
    bytes: () => compute(row),
  }));
  writeSafetensors(args.out, tensors);
  return { rows: args.ids.length, tokens: args.ids.reduce((sum, row) => sum + row.length, 0), out: args.out };
}

function openIds({ modelId, ids, adapter, taskNumber, threads }: LogitsArgs, context: JobContext) {
  const resident = residentOf(modelId);
  useThreads(threads ?? resident.threads);
  const model = resident.use(adapter, undefined, context);
  if (model.image) {
    throw new GraftError('usage', `${model.family} models read images, not token ids`, {
      place: resident.path,
      hint: 'Use predict with images',
    });
  }
  checkIds(ids, model.vocabSize);
  const task = resident.taskNumber(adapter, taskNumber);
  const compute = (row: readonly number[]): Uint8Array => {
    context.throwIfStopped();
    return noGrad(() => {
      using _ = scope();
      return outputOf(model, packTokens([row], [task])).bytes();
    });
  };
  return { compute, shapes: ids.map(({ length }) => shapeOf(model, length)) };
}

/** Shape of the head's output for a row of `length` tokens. */
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

function checkIds(rows: IdRows, vocabSize: number): void {
  if (rows.length === 0) throw new GraftError('usage', 'there are no rows of ids', { place: 'ids' });
  rows.forEach((row, r) => {
    const place = `ids[${r}]`;
    if (row.length === 0) throw new GraftError('usage', 'the row has no ids', { place });
    const i = row.findIndex((id) => !Number.isInteger(id) || id < 0 || id >= vocabSize);
    if (i < 0) return;
    throw new GraftError('usage', `${row[i]} is not an id of the vocabulary of ${vocabSize}`, {
      place: `${place}[${i}]`,
    });
  });
}
