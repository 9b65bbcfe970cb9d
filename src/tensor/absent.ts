/**
 * Tensors whose numbers are elsewhere: they have a shape and a type, and get memory only while it is needed. An operator that reads one
 * meanwhile throws (LibTorch's meta device has no numbers).
 */

import { currentEngine } from '../engine/index.ts';
import { currentDevice } from './device.ts';
import type { DType } from './dtype.ts';
import { exchangeHandles, moveHandle } from './scope.ts';
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

/**
 * Lets a tensor be absent, and returns what it was, which a recorded graph may read: `giveBack` restores it, with the gradient of that graph.
 */
export function setAside(tensor: Tensor): Tensor {
  const aside = absent(tensor.shape, tensor.dtype);
  if (tensor.requiresGrad) aside.requiresGrad = true;
  exchangeHandles(tensor, aside);
  return aside;
}

/** Lets a tensor be again what was set aside. */
export const giveBack = (tensor: Tensor, aside: Tensor): void => moveHandle(tensor, aside);

/** Takes the memory of a tensor and of all its views, as a tensor of bytes. They keep their shapes; none may be read before `refill`. */
export const takeMemory = (tensor: Tensor): Tensor => new Tensor(currentEngine().native.takeMemory(tensor.id));

/** Whether something else reads the memory of a tensor too: a view of it, or a recorded graph. */
export const isShared = (tensor: Tensor): boolean => currentEngine().native.isShared(tensor.id);

/** Gives a tensor and its views the memory of another of as many bytes, which is disposed. A recorded graph may read them: to it nothing was written. */
export function refill(tensor: Tensor, from: Tensor): void {
  currentEngine().native.moveMemory(tensor.id, from.id);
  from.dispose();
}
