import { GraftError } from '../base/index.ts';
import { microBatches, type Packed, pack, type Row } from '../data/index.ts';
import { dealt, type Group, oneProcess } from '../distributed/index.ts';
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
 * @param sharers processes among which the batches are dealt out
 */
export function batchesOf(
  task: Task,
  rows: readonly Row[],
  budget: number,
  rowsPerBatch: number,
  virtualTokens = 0,
  sharers = 1,
): Packed[] {
  if (!task.comparesRows) return microBatches(rows, budget, virtualTokens, sharers).map(pack);
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
  rounds = batches.length,
  during: Required<MeasureOptions>['during'] = (run) => run?.(),
) {
  noGrad(() => {
    for (let i = 0; i < rounds; i++) {
      const batch = batches[i];
      const run = () => {
        using _ = scope();
        act(batch!, hiddenOf(batch!));
        onBatch(i + 1, batches.length);
      };
      during(batch && run);
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
  /** The processes among which the batches are dealt out; the result is the same on all of them. Default: this one alone. */
  readonly group?: Group;
  /** Runs each batch; undefined where this process has no more and another has. Every process calls it equally often. Default: just runs. */
  readonly during?: (run: (() => void) | undefined) => void;
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
  { onBatch = () => {}, byRow = false, hiddenOf, group = oneProcess, during }: MeasureOptions = {},
): EvalResult {
  const owners = dealt(
    batches.map(({ ids }) => ids.length),
    group.size,
  );
  const ofRank = (rank: number) => [...batches.keys()].filter((i) => owners[i] === rank);
  const own = ofRank(group.rank);
  const rounds = Math.max(...Array.from({ length: group.size }, (_, rank) => ofRank(rank).length));
  const parts: { batch: number; sum: number; outputs: readonly unknown[]; losses: readonly RowLoss[] | undefined }[] =
    [];
  const act = (batch: Packed, hidden: ReturnType<Model['hidden']>) => {
    const losses = byRow ? task.rowLosses?.(model, hidden, batch) : undefined;
    const sum = losses?.reduce((total, row) => total + row.sum, 0) ?? task.lossSum(model, hidden, batch).item();
    parts.push({ batch: own[parts.length]!, sum, outputs: task.outputs?.(model, hidden, batch) ?? [], losses });
  };
  const ownBatches = own.map((i) => batches[i]!);
  forEachBatch(model, ownBatches, act, onBatch, hiddenOf, rounds, during);

  const all = group.collect(parts).flat();
  const outputs = new Map<Row, unknown>();
  const rowLosses = new Map<Row, RowLoss>();
  for (const part of all) {
    const { rows } = batches[part.batch]!;
    for (const [i, output] of part.outputs.entries()) outputs.set(rows[i]!, output);
    for (const [i, loss] of (part.losses ?? []).entries()) rowLosses.set(rows[i]!, loss);
  }
  // In the order of the batches, so that the sum does not depend on who measured them.
  const sum = all.toSorted((a, b) => a.batch - b.batch).reduce((total, part) => total + part.sum, 0);
  const units = batches.reduce((total, batch) => total + task.units(batch), 0);
  if (!Number.isFinite(sum)) throw new GraftError('numeric', 'the loss of the evaluated rows is not finite');
  const taskMetrics = order.length > 0 ? task.metrics?.(order, (row) => outputs.get(row)) : undefined;
  const metrics = rowLosses.size > 0 ? [lossMetric(order.map((row) => rowLosses.get(row)!))] : [];
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
    throw new GraftError('usage', `${task.head.name} has no labels of its own to predict`, {
      hint: 'Give the answers to choose among as labels, or generate text',
    });
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
