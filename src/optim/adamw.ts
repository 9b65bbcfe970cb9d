/** The AdamW optimizer (arXiv 1711.05101, algorithm 2), with LibTorch's fused step. */
import { z } from 'zod';
import { ops } from '../tensor/index.ts';
import type { OptimizerType } from './optimizer.ts';
import { weightDecay } from './shared-fields.ts';

/** The fields of AdamW, of its other forms too. */
export const adamwFields = {
  beta1: z.number().min(0).lt(1).default(0.9).describe('Decay rate of the running mean of the gradient.'),
  beta2: z.number().min(0).lt(1).default(0.999).describe('Decay rate of the running mean of the squared gradient.'),
  eps: z.number().positive().default(1e-8).describe('Constant added to the denominator, for numerical stability.'),
  weight_decay: weightDecay,
};

const config = z.strictObject(adamwFields).describe('AdamW: 8 bytes of state for each trained number.');

/** Keeps two moments of the size of each parameter, in float32, and a step count. */
export const adamw: OptimizerType<z.output<typeof config>> = {
  name: 'adamw',
  config,
  perNumber: true,
  slots: (shape) => ({
    exp_avg: { shape, dtype: 'float32' },
    exp_avg_sq: { shape, dtype: 'float32' },
    step: { shape: [], dtype: 'float32' },
  }),
  update(group, { lr, weightDecay }, { beta1, beta2, eps }) {
    const of = (slot: string) => group.map(({ slots }) => slots[slot]!);
    ops.addScalarToEach(of('step'), 1);
    ops.fusedAdamW_(
      group.map(({ parameter }) => parameter),
      group.map(({ grad }) => grad),
      of('exp_avg'),
      of('exp_avg_sq'),
      [],
      of('step'),
      { lr, beta1, beta2, weightDecay, eps, amsgrad: false, maximize: false },
    );
  },
};
