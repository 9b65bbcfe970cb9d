/** Language modelling: the next token, at the tokens that are to be learned. Its rows are made by `toRows` of src/data. */
import { GraftError } from '../base/index.ts';
import type { TaskHead } from '../nn/index.ts';
import { Tensor } from '../tensor/index.ts';
import type { Task } from './task.ts';

export const causalLm = (head: TaskHead): Task<never> => ({
  head,
  rows(_example, place) {
    throw new GraftError('usage', 'rows of text to be written have no labels to predict', { place });
  },
  units: ({ predicted }) => predicted,
  lossSum: (model, hidden, { targets }) => model.lossSum(hidden, Tensor.from(BigInt64Array.from(targets, BigInt))),
});
