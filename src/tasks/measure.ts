import { GraftError } from '../base/index.ts';
import { microBatches, type Packed, pack, type Row } from '../data/index.ts';
import type { Model } from '../nn/index.ts';
import { noGrad, scope } from '../tensor/index.ts';
import { tokensOf } from './input.ts';
import { lossMetric, type RowLoss } from './metrics.ts';
import type { Task, TaskMetrics } from './task.ts';

/** Loss and metrics of a task over packed rows. */
export interface EvalResult extends TaskMetrics {
  /** Mean loss over the units of the task, in nats for a likelihood. */
  readonly loss: number;
  /** The number of predicted tokens or rows, or the sum of their weights. */
  readonly units: number;
}

/**
 * Packs rows into batches.
 * @param budget tokens of a batch at most, virtual tokens included
 * @param rowsPerBatch rows of a batch, for a task that compares rows with one another; the budget does not apply to it
 * @param virtualTokens how many tokens a prompt puts before every row
 */
export function batchesOf(
  task: Task,
  rows: readonly Row[],
  budget: number,
  rowsPerBatch: number,
  virtualTokens = 0,
): Packed[] {
  if (!task.comparesRows) return microBatches(rows, budget, virtualTokens).map(pack);
  const count = Math.ceil(rows.length / rowsPerBatch);
  return Array.from({ length: count }, (_, b) => pack(rows.slice(b * rowsPerBatch, (b + 1) * rowsPerBatch)));
}

/** Is called after each batch with how many are done, and may throw to stop. */
export type OnBatch = (done: number, total: number) => void;

/** Runs the model on every batch without gradients and passes the hidden states on; one batch is in memory at a time. */
function forEachBatch(
  model: Model,
  batches: readonly Packed[],
  act: (batch: Packed, hidden: ReturnType<Model['hidden']>) => void,
  onBatch: OnBatch,
  hiddenOf = (batch: Packed) => model.hidden(tokensOf(model, batch)),
) {
  noGrad(() => {
    for (const [i, batch] of batches.entries()) {
      using _ = scope();
      act(batch, hiddenOf(batch));
      onBatch(i + 1, batches.length);
    }
  });
}

/** How rows are measured. */
export interface MeasureOptions {
  /** Is called after each batch. */
  readonly onBatch?: OnBatch;
  /** Whether a loss that each row has is a metric too, with an interval; a small product for each row costs some time. */
  readonly byRow?: boolean;
  /** Returns the final hidden states [N, C] of a batch. Default: a forward pass of the model. */
  readonly hiddenOf?: ((batch: Packed) => ReturnType<Model['hidden']>) | undefined;
}

/**
 * Loss and metrics of a task over packed rows.
 * @param order the rows in their original order, which batches do not keep; the resampling of intervals depends on it
 * @throws GraftError 'numeric' when the loss is not finite
 */
export function measure(
  model: Model,
  task: Task,
  batches: readonly Packed[],
  order: readonly Row[],
  { onBatch = () => {}, byRow = false, hiddenOf }: MeasureOptions = {},
): EvalResult {
  let [sum, units] = [0, 0];
  const outputs = new Map<Row, unknown>();
  const losses = new Map<Row, RowLoss>();
  const act = (batch: Packed, hidden: ReturnType<Model['hidden']>) => {
    const rowLosses = byRow ? task.rowLosses?.(model, hidden, batch) : undefined;
    if (rowLosses) for (const [i, loss] of rowLosses.entries()) losses.set(batch.rows[i]!, loss);
    sum += rowLosses?.reduce((total, row) => total + row.sum, 0) ?? task.lossSum(model, hidden, batch).item();
    units += task.units(batch);
    for (const [i, output] of (task.outputs?.(model, hidden, batch) ?? []).entries())
      outputs.set(batch.rows[i]!, output);
  };
  forEachBatch(model, batches, act, onBatch, hiddenOf);
  if (!Number.isFinite(sum)) throw new GraftError('numeric', 'the loss of the evaluated rows is not finite');
  const taskMetrics = order.length > 0 ? task.metrics?.(order, (row) => outputs.get(row)) : undefined;
  const metrics = losses.size > 0 ? [lossMetric(order.map((row) => losses.get(row)!))] : [];
  return { loss: sum / units, units, metrics, ...taskMetrics };
}

/**
 * The predictions for examples, as lines of a file of predictions.
 * @param order the rows in their original order; the windows of one example give one prediction
 * @throws GraftError 'usage' for a task without labels
 */
export function predict(
  model: Model,
  task: Task,
  batches: readonly Packed[],
  order: readonly Row[],
  onBatch: OnBatch = () => {},
): Readonly<Record<string, unknown>>[] {
  if (!task.outputs || !task.prediction) {
    throw new GraftError('usage', `${task.head.name} has no labels to predict`, { hint: 'Use graft generate' });
  }
  const outputs = new Map<Row, unknown>();
  const act = (batch: Packed, hidden: ReturnType<Model['hidden']>) => {
    for (const [i, output] of task.outputs!(model, hidden, batch).entries()) outputs.set(batch.rows[i]!, output);
  };
  forEachBatch(model, batches, act, onBatch);
  return [...Map.groupBy(order, ({ example }) => example).values()].map((rows) =>
    task.prediction!(rows, (row) => outputs.get(row)),
  );
}
