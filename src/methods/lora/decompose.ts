/** Matrices [out, in] as products of thin ones, W ≈ s·BA with A [rank, in] and B [out, rank]. */
import { type Generator, ops, type Tensor } from '../../tensor/index.ts';

/** A = √(S/s) Vᵀ and B = U √(S/s) of the r largest singular values: s·BA is nearest to the matrix. */
function halves(u: Tensor, s: Tensor, vh: Tensor, rank: number, scaling: number): [a: Tensor, b: Tensor] {
  const root = ops.sqrt(ops.divScalar(ops.narrow(s, 0, 0, rank), scaling));
  const a = ops.mul(ops.unsqueeze(root, 1), ops.narrow(vh, 0, 0, rank));
  return [ops.contiguous(a), ops.contiguous(ops.mul(ops.narrow(u, 1, 0, rank), root))];
}

/** The part of rank `rank` of a matrix that is nearest to it. */
export const largest = (matrix: Tensor, rank: number, scaling: number) =>
  halves(...ops.linalgSvd(matrix, false), rank, scaling);

/** The same from a random sketch, sharper with every one of `rounds` (arXiv 0909.4061, algorithms 4.4 and 5.1). */
export function sketched(weight: Tensor, rank: number, scaling: number, rounds: number, generator: Generator) {
  const sketch = ops.randn([weight.size(1), rank], { generator });
  let [q] = ops.linalgQr(ops.mm(weight, sketch));
  for (let i = 0; i < rounds; i++) {
    const [back] = ops.linalgQr(ops.mm(ops.t(weight), q));
    [q] = ops.linalgQr(ops.mm(weight, back));
  }
  const [u, s, vh] = ops.linalgSvd(ops.mm(ops.t(q), weight), false);
  return halves(ops.mm(q, u), s, vh, rank, scaling);
}

/** The first `rank` rows and columns of its QR decomposition. */
export function orthogonal(weight: Tensor, rank: number): [a: Tensor, b: Tensor] {
  const [q, r] = ops.linalgQr(weight);
  return [ops.contiguous(ops.narrow(r, 0, 0, rank)), ops.contiguous(ops.narrow(q, 1, 0, rank))];
}

/**
 * LoftQ's alternations: Q ← pack(W − s·BA), BA ← the largest part of (W − Q)/s.
 * @param weight as the checkpoint has it [out, in]
 * @param packed what the base holds, in blocks of `format`
 */
export function alternate(
  weight: Tensor,
  packed: Tensor,
  format: number,
  rank: number,
  scaling: number,
  rounds: number,
) {
  let held = packed;
  const rest = ops.sub(weight, ops.dequantize(held, format));
  const lost = ops.vectorNorm(rest, 2).item();
  let [a, b] = largest(rest, rank, scaling);
  for (let i = 1; i < rounds; i++) {
    held = ops.quantize(ops.sub(weight, ops.mulScalar(ops.mm(b, a), scaling)), format);
    [a, b] = largest(ops.sub(weight, ops.dequantize(held, format)), rank, scaling);
  }
  return { a, b, held, lost };
}
