/**
 * Adafactor (arXiv 1804.04235) as transformers' trainer uses it (`scale_parameter` and `relative_step` off), so that the learning rate
 * is the recipe's: torch.optim.Adafactor scales it by the size of each parameter, which no recipe of another optimizer fits.
 */
import { z } from 'zod';
import { ops, scope, type Tensor } from '../tensor/index.ts';
import type { OptimizerType } from './optimizer.ts';
import { weightDecay } from './shared-fields.ts';

const config = z
  .strictObject({
    beta1: z
      .number()
      .min(0)
      .lt(1)
      .nullish()
      .describe('Decay rate of a running mean of the updates; without it none is kept, which saves its memory.'),
    decay_rate: z
      .number()
      .negative()
      .default(-0.8)
      .describe('The running means of squared gradients decay at the rate 1 − t^decay_rate in step t.'),
    clip_threshold: z.number().positive().default(1).describe('Root mean square of an update at most.'),
    eps: z.number().positive().default(1e-30).describe('Constant added to squared gradients.'),
    weight_decay: weightDecay,
  })
  .describe(
    'Second moments as the product of a row and a column (Adafactor, arXiv 1804.04235), as in transformers’ trainer with the learning rate as given: some bytes of state for each row and column.',
  );

/** The mean of x² over an axis [-1 or -2], without a copy of x. */
function meanSquare(x: Tensor, axis: number): Tensor {
  const norm = ops.vectorNorm(x, 2, [axis]);
  return ops.divScalar_(ops.mul_(norm, norm), x.size(axis));
}

/** Keeps, of squared gradients, running means of each row and column of a matrix, or of every number of a vector, and a step count. */
export const adafactor: OptimizerType<z.output<typeof config>> = {
  name: 'adafactor',
  config,
  slots: (shape, { beta1 }) => ({
    ...(shape.length > 1
      ? {
          exp_avg_sq_row: { shape: shape.slice(0, -1), dtype: 'float32' },
          exp_avg_sq_col: { shape: [...shape.slice(0, -2), ...shape.slice(-1)], dtype: 'float32' },
        }
      : { exp_avg_sq: { shape, dtype: 'float32' } }),
    ...(beta1 != null && { exp_avg: { shape, dtype: 'float32' } }),
    step: { shape: [], dtype: 'float32' },
  }),
  update(group, { lr, weightDecay }, { beta1, decay_rate, clip_threshold, eps }) {
    for (const { parameter, grad, slots } of group) {
      using _ = scope();
      const step = slots.step!.item() + 1;
      ops.fill_(slots.step!, step);
      const share = step ** decay_rate;
      const follow = (mean: Tensor, squares: Tensor) => ops.lerp_(mean, ops.addScalar(squares, eps), share);
      let update: Tensor;
      if (grad.shape.length > 1) {
        const row = follow(slots.exp_avg_sq_row!, meanSquare(grad, -1));
        const column = follow(slots.exp_avg_sq_col!, meanSquare(grad, -2));
        const rowFactor = ops.rsqrt(ops.div(row, ops.meanDim(row, [-1], true)));
        update = ops.mul(grad, ops.unsqueeze(rowFactor, -1));
        ops.mul_(update, ops.unsqueeze(ops.rsqrt(column), -2));
      } else {
        update = ops.mul(grad, ops.rsqrt(follow(slots.exp_avg_sq!, ops.mul(grad, grad))));
      }
      const numbers = update.shape.reduce((a, b) => a * b, 1);
      const tooLarge = ops.divScalar(ops.vectorNorm(update, 2), Math.sqrt(numbers) * clip_threshold);
      ops.mul_(update, ops.reciprocal(ops.clampMin(tooLarge, 1)));
      if (weightDecay > 0) ops.mulScalar_(parameter, 1 - lr * weightDecay);
      // The mean is of updates times their learning rates, so that a schedule acts at once on new ones only, as in transformers.
      const taken = beta1 != null ? ops.lerp_(slots.exp_avg!, ops.mulScalar_(update, lr), 1 - beta1) : update;
      ops.add_(parameter, taken, { alpha: beta1 != null ? -1 : -lr });
    }
  },
};
