/** Language modelling: predicts the next token where a row has a label. Its rows are made by `toRows` of src/data. */
import { GraftError } from '../base/index.ts';
import type { TaskHead } from '../nn/index.ts';
import { ops, scope, Tensor } from '../tensor/index.ts';
import type { Task } from './task.ts';

export const causalLm = (head: TaskHead): Task<never> => ({
  head,
  rows(_example, place) {
    throw new GraftError('usage', 'causal-lm generates text and has no labels to predict', { place });
  },
  units: ({ predicted }) => predicted,
  lossSum: (model, hidden, { targets }) => model.lossSum(hidden, Tensor.from(BigInt64Array.from(targets, BigInt))),
  rowLosses: (model, hidden, { rows, rowStarts, targets }) =>
    rows.map((_, r) => {
      using _scope = scope();
      const [start, end] = [rowStarts[r]!, rowStarts[r + 1]!];
      const ofRow = targets.slice(start, end);
      const sum = model.lossSum(
        ops.narrow(hidden, 0, start, end - start),
        Tensor.from(BigInt64Array.from(ofRow, BigInt)),
      );
      return { sum: sum.item(), units: ofRow.filter((target) => target >= 0).length };
    }),
});
