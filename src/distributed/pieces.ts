/** Parts of trained tensors by the processes that update them. */
import type { Tensor } from '../tensor/index.ts';
import type { NumberRange } from './even-shares.ts';
import type { Group } from './group.ts';

/** Consecutive numbers of a tensor that one process updates. */
export interface Piece extends NumberRange {
  /** The rank of the process. */
  readonly owner: number;
  /** On the owner: the tensor that it updates, of these numbers or of the whole. */
  readonly own: Tensor | undefined;
}

/** A tensor that one process updates whole. */
export const wholePiece = ({ rank }: Group, tensor: Tensor, owner: number): Piece => ({
  from: 0,
  count: tensor.numel,
  owner,
  own: owner === rank ? tensor : undefined,
});
