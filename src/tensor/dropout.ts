import * as ops from './ops.gen.ts';
import { Tensor } from './tensor.ts';

/**
 * Dropout (Srivastava et al. 2014): each number of x is 0 with probability p, else it is divided by 1 − p. The mask comes from this
 * thread's random generator (`manualSeed`); values are those of `torch.dropout` for the same generator state.
 */
export function dropout(x: Tensor, p: number): Tensor {
  const mask = ops.bernoulli_(Tensor.empty(x.shape, x.dtype, x.device), 1 - p);
  return ops.mul(x, ops.divScalar(mask, 1 - p));
}
