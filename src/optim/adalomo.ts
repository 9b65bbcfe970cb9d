/** AdaLOMO (arXiv 2310.10195): LOMO with factored second moments, as in Adafactor, and normalised updates. */
import { z } from 'zod';
import { ops, type Tensor } from '../tensor/index.ts';
import type { OptimizerType } from './optimizer.ts';
import { clipGradValue, weightDecay } from './shared-fields.ts';

const config = z
  .strictObject({
    eps: z.number().positive().default(1e-30).describe('Constant added to squared gradients.'),
    min_scale: z
      .number()
      .positive()
      .default(1e-3)
      .describe('The learning rate is relative to the root mean square of a parameter, or to this where that is less.'),
    clip_threshold: z
      .number()
      .positive()
      .default(1)
      .describe('Root mean square of an update at most, before the learning rate.'),
    decay_rate: z
      .number()
      .negative()
      .default(-0.8)
      .describe('c: the decay rate of the running mean of the squared gradient is 1 − t^c in step t.'),
    clip_grad_value: clipGradValue,
    weight_decay: weightDecay,
  })
  .describe(
    'AdaLOMO: an adaptive optimizer in the backward pass (arXiv 2310.10195). State of a row and a column for each matrix, and the gradients of one layer exist at a time. The learning rate is relative to the size of each parameter. All rows of a step are one micro-batch; train.max_grad_norm is not possible.',
  );

const rootMeanSquare = (t: Tensor) => ops.vectorNorm(t, 2).item() / Math.sqrt(t.numel);

/** Mean of squares along one axis, plus `eps`, without a square of the whole tensor. */
const meanSquare = (t: Tensor, axis: number, eps: number) =>
  ops.addScalar(ops.divScalar(ops.pow(ops.vectorNorm(t, 2, [axis]), 2), t.size(axis)), eps);

/** mean ← β·mean + (1−β)·value */
function average(mean: Tensor, value: Tensor, beta: number): void {
  ops.mulScalar_(mean, beta);
  ops.add_(mean, value, { alpha: 1 - beta });
}

/** Keeps running means of the squared gradient, of each row and of each column of a matrix, and a step count. */
export const adalomo: OptimizerType<z.output<typeof config>> = {
  name: 'adalomo',
  config,
  inBackward: true,
  slots: (shape) => ({
    ...(shape.length > 1
      ? {
          exp_avg_sq_row: { shape: shape.slice(0, -1), dtype: 'float32' },
          exp_avg_sq_col: { shape: [...shape.slice(0, -2), shape.at(-1)!], dtype: 'float32' },
        }
      : { exp_avg_sq: { shape, dtype: 'float32' } }),
    step: { shape: [], dtype: 'float32' },
  }),
  update(group, { lr, weightDecay }, { eps, min_scale, clip_threshold, decay_rate, clip_grad_value: bound }) {
    for (const { parameter, grad, slots } of group) {
      if (bound !== undefined) ops.clamp_(grad, -bound, bound);
      const { exp_avg_sq: all, exp_avg_sq_row: row, exp_avg_sq_col: column, step } = slots;
      ops.addScalarToEach([step!], 1);
      const beta = 1 - step!.item() ** decay_rate;
      // The gradient becomes the update in its own memory.
      if (all) {
        average(all, ops.addScalar(ops.mul(grad, grad), eps), beta);
        ops.mul_(grad, ops.rsqrt(all));
      } else {
        average(row!, meanSquare(grad, -1, eps), beta);
        average(column!, meanSquare(grad, -2, eps), beta);
        ops.mul_(grad, ops.unsqueeze(ops.rsqrt(ops.div(row!, ops.meanDim(row!, [-1], true))), -1));
        ops.mul_(grad, ops.unsqueeze(ops.rsqrt(column!), -2));
      }
      ops.divScalar_(grad, Math.max(1, rootMeanSquare(grad) / clip_threshold));
      const rate = lr * Math.max(min_scale, rootMeanSquare(parameter));
      if (weightDecay > 0) ops.mulScalar_(parameter, 1 - rate * weightDecay);
      ops.add_(parameter, grad, { alpha: -rate });
    }
  },
};
