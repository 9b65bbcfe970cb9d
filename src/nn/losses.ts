import { ops, Tensor } from '../tensor/index.ts';

/**
 * Returns the sum of the cross-entropies, in nats, of `logits(h)` against targets int64 [N], over the targets ≥ 0: a scalar.
 * For heads of several layers; with a single linear layer, `Linear.crossEntropy` takes less memory.
 * @param logits hidden states [n, C] → [n, V]
 */
export function crossEntropyOfLogits(logits: (h: Tensor) => Tensor, h: Tensor, targets: Tensor): Tensor {
  const labels = targets.data() as BigInt64Array;
  const predicted = [...labels.keys()].filter((i) => labels[i]! >= 0n);
  const rows = Tensor.from(BigInt64Array.from(predicted, BigInt));
  const logProbabilities = ops.logSoftmax(logits(ops.indexSelect(h, 0, rows)), -1);
  const picked = ops.gather(logProbabilities, 1, ops.unsqueeze(ops.indexSelect(targets, 0, rows), 1));
  return ops.neg(ops.sum(picked));
}
