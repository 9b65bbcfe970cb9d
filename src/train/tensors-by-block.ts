import { heldTensors, type Model } from '../nn/index.ts';
import type { Tensor } from '../tensor/index.ts';

/** Returns the tensors of some models by the number of their block; undefined: outside, and what stands in several. */
export function tensorsByBlock(models: readonly Model[]): Map<number | undefined, Tensor[]> {
  const blockOf = new Map<Tensor, number | undefined>();
  for (const { root, sites } of models) {
    const prefix = sites.block.split('*')[0]!;
    for (const [path, tensor] of heldTensors(root)) {
      const block = path.startsWith(prefix) ? Number.parseInt(path.slice(prefix.length), 10) : undefined;
      blockOf.set(tensor, blockOf.has(tensor) && blockOf.get(tensor) !== block ? undefined : block);
    }
  }
  return Map.groupBy(blockOf.keys(), (tensor) => blockOf.get(tensor));
}
