/** LOMO (arXiv 2306.09782): stochastic gradient descent whose updates happen in the backward pass. */
import { z } from 'zod';
import { ops } from '../tensor/index.ts';
import type { OptimizerType } from './optimizer.ts';
import { clipGradValue, weightDecay } from './shared-fields.ts';

const config = z
  .strictObject({ clip_grad_value: clipGradValue, weight_decay: weightDecay })
  .describe(
    'LOMO: gradient descent in the backward pass (arXiv 2306.09782). No state, and the gradients of one layer exist at a time, so that full fine-tuning takes little more than the weights. All rows of a step are one micro-batch; train.max_grad_norm is not possible.',
  );

/** Keeps nothing. */
export const lomo: OptimizerType<z.output<typeof config>> = {
  name: 'lomo',
  config,
  inBackward: true,
  slots: () => ({}),
  update(group, { lr, weightDecay }, { clip_grad_value: bound }) {
    for (const { parameter, grad } of group) {
      if (bound !== undefined) ops.clamp_(grad, -bound, bound);
      if (weightDecay > 0) ops.mulScalar_(parameter, 1 - lr * weightDecay);
      ops.add_(parameter, grad, { alpha: -lr });
    }
  },
};
