import { ops, type Tensor } from '../tensor/index.ts';

/**
 * Returns the sum of the cross-entropies, in nats, of `logits(h)` against targets int64 [N], over the targets ≥ 0: a scalar.
 * Logits exist for all N rows: pass those with a target. With a single linear layer, `Linear.crossEntropy` takes less memory.
 * @param logits hidden states [N, C] → [N, V]
 */
export function crossEntropyOfLogits(logits: (h: Tensor) => Tensor, h: Tensor, targets: Tensor): Tensor {
  const logProbabilities = ops.logSoftmax(logits(h), -1);
  const ignored = ops.unsqueeze(ops.ltScalar(targets, 0), 1);
  const picked = ops.gather(logProbabilities, 1, ops.maskedFill(ops.unsqueeze(targets, 1), ignored, 0));
  return ops.neg(ops.sum(ops.maskedFill(picked, ignored, 0)));
}
