/** Stochastic gradient descent with momentum, as torch.optim.SGD, with LibTorch's fused step. */
import { z } from 'zod';
import { ops } from '../tensor/index.ts';
import type { OptimizerType } from './optimizer.ts';

const config = z
  .strictObject({
    momentum: z
      .number()
      .min(0)
      .lt(1)
      .default(0.9)
      .describe('Factor of the sum of earlier gradients; 0: nothing is kept. torch’s default is 0.'),
    nesterov: z
      .boolean()
      .default(false)
      .describe('Look ahead along the momentum (Nesterov); needs a momentum above 0.'),
    weight_decay: z
      .number()
      .nonnegative()
      .default(0)
      .describe('Weight decay of matrices, added to the gradient as in torch; biases and norms are never decayed.'),
  })
  .refine(({ momentum, nesterov }) => momentum > 0 || !nesterov, {
    path: ['nesterov'],
    message: 'needs a momentum above 0',
  })
  .describe('Gradient descent with momentum: 4 bytes of state for each trained number, none without momentum.');

/** Keeps the momentum, of the size of each parameter; from zeros, which is torch's first step where dampening is 0. */
export const sgd: OptimizerType<z.output<typeof config>> = {
  name: 'sgd',
  config,
  perNumber: true,
  slots: (shape, { momentum }) => (momentum > 0 ? { momentum_buffer: { shape, dtype: 'float32' } } : {}),
  update(group, { lr, weightDecay }, { momentum, nesterov }) {
    ops.fusedSgd_(
      group.map(({ parameter }) => parameter),
      group.map(({ grad }) => grad),
      momentum > 0 ? group.map(({ slots }) => slots.momentum_buffer!) : [],
      { lr, momentum, weightDecay, nesterov, dampening: 0, maximize: false, isFirstStep: false },
    );
  },
};
