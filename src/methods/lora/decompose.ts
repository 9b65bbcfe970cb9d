/** Low-rank approximations of matrices W [out, in]: W ≈ s·BA with A [rank, in] and B [out, rank]. */
import { dequantized, quantized as inBlocks } from '../../quant/index.ts';
import { type Generator, ops, type Tensor } from '../../tensor/index.ts';

/** Returns A = √(S/s) Vᵀ and B = U √(S/s) of the `rank` largest singular values S, so that s·BA is the nearest to U S Vᵀ. */
function factors(u: Tensor, s: Tensor, vh: Tensor, rank: number, scaling: number): [a: Tensor, b: Tensor] {
  const root = ops.sqrt(ops.divScalar(ops.narrow(s, 0, 0, rank), scaling));
  const a = ops.mul(ops.unsqueeze(root, 1), ops.narrow(vh, 0, 0, rank));
  return [ops.contiguous(a), ops.contiguous(ops.mul(ops.narrow(u, 1, 0, rank), root))];
}

/** Returns A and B of the best approximation of rank `rank`, by a singular value decomposition. */
export const truncatedSvd = (matrix: Tensor, rank: number, scaling: number) =>
  factors(...ops.linalgSvd(matrix, false), rank, scaling);

/** Returns the same, approximately: randomised SVD with `iterations` power iterations (arXiv 0909.4061, algorithms 4.4 and 5.1). */
export function randomizedSvd(weight: Tensor, rank: number, scaling: number, iterations: number, generator: Generator) {
  const sketch = ops.randn([weight.size(1), rank], { generator });
  let [q] = ops.linalgQr(ops.mm(weight, sketch));
  for (let i = 0; i < iterations; i++) {
    const [rowBasis] = ops.linalgQr(ops.mm(ops.t(weight), q));
    [q] = ops.linalgQr(ops.mm(weight, rowBasis));
  }
  const [u, s, vh] = ops.linalgSvd(ops.mm(ops.t(q), weight), false);
  return factors(ops.mm(q, u), s, vh, rank, scaling);
}

/** Returns the first `rank` rows of R as A and columns of Q as B, of W = QR. */
export function truncatedQr(weight: Tensor, rank: number): [a: Tensor, b: Tensor] {
  const [q, r] = ops.linalgQr(weight);
  return [ops.contiguous(ops.narrow(r, 0, 0, rank)), ops.contiguous(ops.narrow(q, 1, 0, rank))];
}

/**
 * LoftQ's alternating steps (arXiv 2310.08659, algorithm 1): Q ← quantise(W − s·BA), then s·BA ← the best approximation of W − Q.
 * @param weight the checkpoint's weight [out, in]
 * @param quantized the base's weight, in blocks of `format`: Q of the first step
 * @returns A and B, the last Q, and `error`: the norm of W − Q at the first step
 */
export function loftq(
  weight: Tensor,
  quantized: Tensor,
  format: number,
  rank: number,
  scaling: number,
  iterations: number,
) {
  let q = quantized;
  const residual = ops.sub(weight, dequantized(q, format));
  const error = ops.vectorNorm(residual, 2).item();
  let [a, b] = truncatedSvd(residual, rank, scaling);
  for (let i = 1; i < iterations; i++) {
    q = inBlocks(ops.sub(weight, ops.mulScalar(ops.mm(b, a), scaling)), format);
    [a, b] = truncatedSvd(ops.sub(weight, dequantized(q, format)), rank, scaling);
  }
  return { a, b, quantized: q, error };
}
