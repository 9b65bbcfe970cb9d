import type { Group } from '../distributed/index.ts';
import { noGrad, ops, scope, Tensor } from '../tensor/index.ts';

/** Numbers that one collective adds up: enough for the full speed of a network, few beside a model. */
const bucketSize = 4 << 20;

/** Consecutive tensors in buckets of about `bucketSize` numbers; a larger tensor has one of its own. */
export function buckets(tensors: readonly Tensor[]): Tensor[][] {
  const found: Tensor[][] = [];
  let room = 0;
  for (const tensor of tensors) {
    if (tensor.numel > room || found.length === 0) {
      found.push([]);
      room = bucketSize;
    }
    found.at(-1)!.push(tensor);
    room -= tensor.numel;
  }
  return found;
}

/** Calls `act` with the numbers of the tensors end to end as one tensor, and copies back what it makes of them. */
export function flattened(tensors: readonly Tensor[], act: (flat: Tensor) => void): void {
  using _ = scope();
  const [only] = tensors;
  if (tensors.length === 1) {
    act(ops.view(ops.detach(only!), [only!.numel]));
    return;
  }
  const flat = ops.cat(tensors.map((tensor) => ops.view(ops.detach(tensor), [tensor.numel])));
  act(flat);
  const parts = ops.splitWithSizes(
    flat,
    tensors.map(({ numel }) => numel),
  );
  for (const [i, tensor] of tensors.entries()) ops.copy_(ops.detach(tensor), ops.view(parts[i]!, [...tensor.shape]));
}

/**
 * Adds up the gradients of all processes. A parameter that has one on any process has one on all afterwards; one that has none anywhere
 * keeps having none, so that the optimizer passes it over.
 */
export function sumGradients(group: Group, parameters: Iterable<Tensor>): void {
  if (group.size === 1) return;
  noGrad(() => {
    using _ = scope();
    const all = [...parameters];
    const present = Tensor.from(Float32Array.from(all, ({ grad }) => (grad ? 1 : 0)));
    group.sum(present);
    const counts = present.data();
    const shared = all.filter((_, i) => Number(counts[i]) > 0);
    for (const parameter of shared) parameter.grad ??= ops.zeros([...parameter.shape], { dtype: parameter.dtype });
    for (const bucket of buckets(shared)) {
      const gradients = bucket.map((parameter) => ops.contiguous(parameter.grad!));
      flattened(gradients, (flat) => group.sum(flat));
      for (const [i, parameter] of bucket.entries()) parameter.grad = gradients[i]!;
    }
  });
}
