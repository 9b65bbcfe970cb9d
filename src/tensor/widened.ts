import type { DType } from './dtype.ts';
import * as ops from './ops.gen.ts';
import type { Tensor } from './tensor.ts';

/** Returns x, or where it is of another type a copy in this one. */
export const inType = (x: Tensor, dtype: DType): Tensor => (x.dtype === dtype ? x : ops.toCopy(x, { dtype }));

/** Returns x, or where it is bfloat16 a copy in float32: for sums, and for what is updated in small steps, eight bits are too few. */
export const widened = (x: Tensor): Tensor => (x.dtype === 'bfloat16' ? inType(x, 'float32') : x);
