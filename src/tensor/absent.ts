/**
 * Tensors whose numbers are elsewhere: they have a shape and a type, and get memory only while it is needed. An operator that reads one
 * meanwhile throws (LibTorch's meta device has no numbers).
 */
import { currentDevice } from './device.ts';
import type { DType } from './dtype.ts';
import { moveHandle } from './scope.ts';
import { Tensor } from './tensor.ts';

/** Returns a tensor without memory. */
export const absent = (shape: readonly number[], dtype: DType): Tensor => Tensor.empty(shape, dtype, 'meta');

/** Whether a tensor has no memory now; where new tensors have none either, none is absent. */
export const isAbsent = (tensor: Tensor): boolean => tensor.device === 'meta' && currentDevice() !== 'meta';

/** Gives a tensor the memory of another of the same shape and type, which is disposed with this. Gradients are still computed of it, or not. */
export function give(tensor: Tensor, memory: Tensor): void {
  const { requiresGrad } = tensor;
  moveHandle(tensor, memory);
  if (requiresGrad) tensor.requiresGrad = true;
}

/** Frees the memory of a tensor, and its gradient. */
export const takeAway = (tensor: Tensor): void => give(tensor, absent(tensor.shape, tensor.dtype));
