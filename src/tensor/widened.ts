import * as ops from './ops.gen.ts';
import type { Tensor } from './tensor.ts';

/** Returns x, or where it is bfloat16 a copy in float32: for sums, and for what is updated in small steps, eight bits are too few. */
export const widened = (x: Tensor): Tensor => (x.dtype === 'bfloat16' ? ops.toCopy(x, { dtype: 'float32' }) : x);
