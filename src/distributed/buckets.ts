/** Tensors that travel together. */

import { ops, Tensor } from '../tensor/index.ts';
import type { Group } from './group.ts';

/** Numbers that one collective moves: enough for the full speed of a network, few beside a model. */
export const bucketSize = 4 << 20;

/**
 * Numbers of a bucket of gradients, of which one process may be sent all, by every process: fewer where these are many, so that it receives no
 * more than eight buckets at once.
 */
export const gradientBucketSize = (processes: number): number => Math.floor((8 * bucketSize) / Math.max(8, processes));

/** Consecutive tensors in buckets of about so many numbers; a larger tensor has one of its own. */
export function buckets<T extends { readonly numel: number }>(tensors: readonly T[], limit = bucketSize): T[][] {
  const found: T[][] = [];
  let room = 0;
  for (const tensor of tensors) {
    if (tensor.numel > room || found.length === 0) {
      found.push([]);
      room = limit;
    }
    found.at(-1)!.push(tensor);
    room -= tensor.numel;
  }
  return found;
}

const flat = (tensor: Tensor): Tensor => ops.reshape(ops.detach(tensor), [tensor.numel]);

/** The numbers of tensors one after the other; of a single one, in its own memory. */
export const concatenated = (tensors: readonly Tensor[]): Tensor => {
  const [first, ...others] = tensors;
  if (!first) return Tensor.empty([0]);
  return others.length === 0 ? flat(first) : ops.cat(tensors.map(flat));
};

/** How many numbers tensors have. */
export const size = (tensors: readonly Tensor[]): number => tensors.reduce((sum, { numel }) => sum + numel, 0);

/** The parts of a tensor in the shapes of others, which follow each other in it. */
export const parts = (whole: Tensor, like: readonly Tensor[]): Tensor[] =>
  ops
    .splitWithSizes(
      whole,
      like.map(({ numel }) => numel),
    )
    .map((part, i) => ops.view(part, like[i]!.shape));

/** The parameters of a bucket by the process that updates them. */
export const byOwner = (group: Group, bucket: readonly Tensor[], owners: ReadonlyMap<Tensor, number>): Tensor[][] =>
  Array.from({ length: group.size }, (_, rank) => bucket.filter((parameter) => owners.get(parameter) === rank));
