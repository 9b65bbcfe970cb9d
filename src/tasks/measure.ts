import { GraftError } from '../base/index.ts';
import { microBatches, type Packed, pack, type Row } from '../data/index.ts';
import type { Model } from '../nn/index.ts';
import { noGrad, scope } from '../tensor/index.ts';
import { tokensOf } from './input.ts';
import type { Task, TaskMetrics } from './task.ts';

export interface EvalResult extends TaskMetrics {
  /** Mean over the units of the task. */
  readonly loss: number;
  /** Predicted tokens, rows, or their weights. */
  readonly units: number;
}

/**
 * Rows as micro-batches of at most `budget` tokens, `extra` virtual ones a row included; of a task that compares rows, of
 * `together` rows each, whatever their tokens.
 */
export function batchesOf(task: Task, rows: readonly Row[], budget: number, together: number, extra = 0): Packed[] {
  if (!task.together) return microBatches(rows, budget, extra).map(pack);
  const groups = Math.ceil(rows.length / together);
  return Array.from({ length: groups }, (_, g) => pack(rows.slice(g * together, (g + 1) * together)));
}

/** Every batch once, without gradient and dropout, one in memory at a time. */
function pass(
  model: Model,
  batches: readonly Packed[],
  act: (batch: Packed, hidden: ReturnType<Model['hidden']>) => void,
) {
  noGrad(() => {
    for (const batch of batches) {
      using _ = scope();
      act(batch, model.hidden(tokensOf(model, batch)));
    }
  });
}

/**
 * Loss and metrics of a task over packed rows.
 * @param order the rows as they came, for cutting into batches mixes them; the intervals' draws go by it
 * @throws GraftError 'numeric' when the loss is not finite
 */
export function measure(model: Model, task: Task, batches: readonly Packed[], order: readonly Row[]): EvalResult {
  let [sum, units] = [0, 0];
  const said = new Map<Row, unknown>();
  pass(model, batches, (batch, hidden) => {
    sum += task.lossSum(model, hidden, batch).item();
    units += task.units(batch);
    for (const [i, answer] of (task.outputs?.(model, hidden, batch) ?? []).entries()) said.set(batch.rows[i]!, answer);
  });
  if (!Number.isFinite(sum)) throw new GraftError('numeric', 'the loss on the rows to measure is not finite');
  const measures = order.length > 0 ? task.metrics?.(order, (row) => said.get(row)) : undefined;
  return { loss: sum / units, units, metrics: [], ...measures };
}

/** What the task says of each example of `order`, as a file of predictions has it; windows of one example together. */
export function predict(
  model: Model,
  task: Task,
  batches: readonly Packed[],
  order: readonly Row[],
): Readonly<Record<string, unknown>>[] {
  if (!task.outputs || !task.prediction) {
    throw new GraftError('usage', `${task.head.name} has no labels to predict`, { hint: 'Use graft generate' });
  }
  const said = new Map<Row, unknown>();
  pass(model, batches, (batch, hidden) => {
    for (const [i, answer] of task.outputs!(model, hidden, batch).entries()) said.set(batch.rows[i]!, answer);
  });
  return [...Map.groupBy(order, ({ example }) => example).values()].map((rows) =>
    task.prediction!(rows, (row) => said.get(row)),
  );
}
