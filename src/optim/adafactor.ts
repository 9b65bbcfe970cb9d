/**
 * Adafactor (arXiv 1804.04235) as transformers' trainer uses it (`scale_parameter` and `relative_step` off), so that the learning rate
 * is the recipe's: torch.optim.Adafactor scales it by the size of each parameter, which no recipe of another optimizer fits.
 */
import { z } from 'zod';
import { ops, scope } from '../tensor/index.ts';
import { divideByFactoredRoot_, factoredSlots } from './factored.ts';
import { type OptimizerType, stepCount } from './optimizer.ts';
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

/** Keeps, of squared gradients, running means of each row and column of a matrix, or of every number of a vector, and a step count. */
export const adafactor: OptimizerType<z.output<typeof config>> = {
  name: 'adafactor',
  config,
  slots: (shape, { beta1 }) => ({
    ...factoredSlots(shape),
    ...(beta1 != null && { exp_avg: { shape, dtype: 'float32' } }),
    step: stepCount,
  }),
  update(group, { lr, weightDecay }, { beta1, decay_rate, clip_threshold, eps }) {
    for (const { parameter, grad, slots } of group) {
      using _ = scope();
      const step = slots.step!.item() + 1;
      ops.fill_(slots.step!, step);
      // A copy: methods may read the gradient after the update.
      const update = ops.clone(grad);
      divideByFactoredRoot_(update, slots, step ** decay_rate, eps);
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
