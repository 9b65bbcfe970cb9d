import type { Packed } from '../data/index.ts';
import type { Model } from '../nn/index.ts';
import { ops, Tensor, widened } from '../tensor/index.ts';

/** The output of the model's head for the hidden states [N, C] of a batch. */
export const headOutput = (model: Model, hidden: Tensor, { ids, rowStarts }: Packed): Tensor =>
  widened(model.logits(hidden, Array.from(rowStarts), Tensor.from(BigInt64Array.from(ids, BigInt))));

/**
 * Sum over rows of weight[class] · −log softmax(scores)[class], in nats.
 * @param scores [n, L]
 * @param classes [n] the true class of each row
 * @param weights [L]
 */
export function weightedCrossEntropy(scores: Tensor, classes: readonly number[], weights: readonly number[]): Tensor {
  const index = Tensor.from(BigInt64Array.from(classes, BigInt), [classes.length, 1]);
  const logProbabilities = ops.gather(ops.logSoftmax(widened(scores), -1), 1, index);
  const weight = Tensor.from(
    classes.map((c) => weights[c]!),
    logProbabilities.shape,
    logProbabilities.dtype,
  );
  return ops.neg(ops.sum(ops.mul(logProbabilities, weight)));
}

/** The rows of a matrix, copied into arrays. */
export function rowsOf(matrix: Tensor): Float32Array[] {
  const values = ops.contiguous(matrix).data() as Float32Array;
  const width = matrix.size(1);
  return Array.from({ length: matrix.size(0) }, (_, r) => values.slice(r * width, (r + 1) * width));
}
