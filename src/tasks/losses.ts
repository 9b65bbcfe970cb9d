import type { Packed } from '../data/index.ts';
import type { Model } from '../nn/index.ts';
import { ops, Tensor } from '../tensor/index.ts';

/** What the model's head makes of a batch's hidden states [N, C]. */
export const headOutput = (model: Model, hidden: Tensor, { ids, rowStarts }: Packed): Tensor =>
  model.logits(hidden, Array.from(rowStarts), Tensor.from(BigInt64Array.from(ids, BigInt)));

/** Sum over rows of weight[class] · −log soft-max(scores)[class], in nats. scores [n, L], one class a row. */
export function weightedCrossEntropy(scores: Tensor, classes: readonly number[], weights: readonly number[]): Tensor {
  const index = Tensor.from(BigInt64Array.from(classes, BigInt), [classes.length, 1]);
  const picked = ops.gather(ops.logSoftmax(scores, -1), 1, index);
  const weight = Tensor.from(
    classes.map((c) => weights[c]!),
    picked.shape,
    scores.dtype,
  );
  return ops.neg(ops.sum(ops.mul(picked, weight)));
}

/** The rows of a matrix as numbers of their own. */
export function rowsOfNumbers(matrix: Tensor): Float32Array[] {
  const values = ops.contiguous(matrix).data() as Float32Array;
  const width = matrix.size(1);
  return Array.from({ length: matrix.size(0) }, (_, r) => values.slice(r * width, (r + 1) * width));
}
