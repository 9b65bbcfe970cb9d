/** Language modelling: predicts the next token where a row has a label. Its rows are made by `toRows` of src/data. */
import { GraftError } from '../base/index.ts';
import type { TaskHead } from '../nn/index.ts';
import { Tensor } from '../tensor/index.ts';
import type { Task } from './task.ts';

export const causalLm = (head: TaskHead): Task<never> => ({
  head,
  rows(_example, place) {
    throw new GraftError('usage', 'causal-lm generates text and has no labels to predict', { place });
  },
  units: ({ predicted }) => predicted,
  lossSum: (model, hidden, { targets }) => model.lossSum(hidden, Tensor.from(BigInt64Array.from(targets, BigInt))),
});
