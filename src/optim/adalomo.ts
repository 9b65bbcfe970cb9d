/** AdaLOMO (arXiv 2310.10195): LOMO with factored second moments, as in Adafactor, and normalised updates. */
import { z } from 'zod';
import { ops, type Tensor } from '../tensor/index.ts';
import { divideByFactoredRoot_, factoredSlots } from './factored.ts';
import { type OptimizerType, stepCount } from './optimizer.ts';
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

const rootMeanSquare = (t: Tensor) => ops.divScalar(ops.vectorNorm(t, 2), Math.sqrt(t.numel));

/** Keeps running means of the squared gradient, of each row and of each column of a matrix, and a step count. */
export const adalomo: OptimizerType<z.output<typeof config>> = {
  name: 'adalomo',
  config,
  inBackward: true,
  slots: (shape) => ({
    ...factoredSlots(shape),
    step: stepCount,
  }),
  update(group, { lr, weightDecay }, { eps, min_scale, clip_threshold, decay_rate, clip_grad_value: bound }) {
    for (const { parameter, grad, slots } of group) {
      if (bound !== undefined) ops.clamp_(grad, -bound, bound);
      const { step } = slots;
      ops.addScalarToEach([step!], 1);
      // The gradient becomes the update in its own memory.
      divideByFactoredRoot_(grad, slots, step!.item() ** decay_rate, eps);
      const tooLarge = ops.clampMin(ops.divScalar(rootMeanSquare(grad), clip_threshold), 1);
      const rate = ops.mulScalar(ops.clampMin(rootMeanSquare(parameter), min_scale), lr);
      ops.mul_(grad, ops.div(rate, tooLarge));
      if (weightDecay > 0) ops.mul_(parameter, ops.addScalar(ops.mulScalar(rate, -weightDecay), 1));
      ops.sub_(parameter, grad);
    }
  },
};
