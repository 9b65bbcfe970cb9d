/** Language modelling: predicts the next token where a row has a label. Its rows are made by `toRows` of src/data. */
import { GraftError } from '../base/index.ts';
import type { Model, TaskHead } from '../nn/index.ts';
import { ops, scope, Tensor } from '../tensor/index.ts';
import type { Task } from './task.ts';

/** Sum of the losses of the tokens from `start` on, of which those with a target alone reach the head. */
function lossOf(model: Model, hidden: Tensor, targets: Int32Array, start: number): Tensor {
  const places = [...targets.keys()].filter((i) => targets[i]! >= 0);
  const numbers = [...places.map((i) => start + i), ...places.map((i) => targets[i]!)];
  // One copy to the model's device.
  const both = Tensor.from(BigInt64Array.from(numbers, BigInt), [2, places.length]);
  const [rows, labels] = ops.unbind(both) as [Tensor, Tensor];
  return model.lossSum(ops.indexSelect(hidden, 0, rows), labels);
}

export const causalLm = (head: TaskHead): Task<never> => ({
  head,
  metricNames: ['loss'],
  rows(_example, place) {
    throw new GraftError('usage', 'causal-lm generates text and has no labels to predict', { place });
  },
  units: ({ predicted }) => predicted,
  lossSum: (model, hidden, { targets }) => lossOf(model, hidden, targets, 0),
  rowLosses: (model, hidden, { rows, rowStarts, targets }) =>
    rows.map((_, r) => {
      using _scope = scope();
      const [start, end] = [rowStarts[r]!, rowStarts[r + 1]!];
      const ofRow = targets.slice(start, end);
      const sum = lossOf(model, hidden, ofRow, start);
      return { sum: sum.item(), units: ofRow.filter((target) => target >= 0).length };
    }),
});
