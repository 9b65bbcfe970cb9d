/** The Lion optimizer (arXiv 2302.06675, algorithm 2): every number moves by the learning rate, in the direction of a sign. */
import { z } from 'zod';
import { ops, scope } from '../tensor/index.ts';
import type { OptimizerType } from './optimizer.ts';
import { weightDecay } from './shared-fields.ts';

const config = z
  .strictObject({
    beta1: z.number().min(0).lt(1).default(0.9).describe('Share of the running mean in the direction of a step.'),
    beta2: z.number().min(0).lt(1).default(0.99).describe('Decay rate of the running mean of the gradient.'),
    weight_decay: weightDecay,
  })
  .describe(
    'Steps of equal size in the direction of a sign (Lion, arXiv 2302.06675): 4 bytes of state for each trained number. It needs a learning rate three to ten times lower than AdamW, and a weight decay as many times higher.',
  );

/** Keeps one running mean of the size of each parameter. */
export const lion: OptimizerType<z.output<typeof config>> = {
  name: 'lion',
  config,
  perNumber: true,
  slots: (shape) => ({ exp_avg: { shape, dtype: 'float32' } }),
  update(group, { lr, weightDecay }, { beta1, beta2 }) {
    for (const { parameter, grad, slots } of group) {
      using _ = scope();
      const mean = slots.exp_avg!;
      const direction = ops.sign_(ops.lerp(mean, grad, 1 - beta1));
      if (weightDecay > 0) ops.mulScalar_(parameter, 1 - lr * weightDecay);
      ops.add_(parameter, direction, { alpha: -lr });
      ops.lerp_(mean, grad, 1 - beta2);
    }
  },
};
