/** Second moments as the product of a row and a column (Adafactor, arXiv 1804.04235), which several optimizers keep. */
import { ops, type Tensor } from '../tensor/index.ts';
import type { Slot } from './optimizer.ts';

/** Running means of squared gradients: of each row and column of a matrix, or of every number of a vector. */
export const factoredSlots = (shape: readonly number[]): Readonly<Record<string, Slot>> =>
  shape.length > 1
    ? {
        exp_avg_sq_row: { shape: shape.slice(0, -1), dtype: 'float32' },
        exp_avg_sq_col: { shape: [...shape.slice(0, -2), ...shape.slice(-1)], dtype: 'float32' },
      }
    : { exp_avg_sq: { shape, dtype: 'float32' } };

/** The mean of x² over an axis [-1 or -2], without a copy of x. */
function meanSquare(x: Tensor, axis: number): Tensor {
  const norm = ops.vectorNorm(x, 2, [axis]);
  return ops.divScalar_(ops.mul_(norm, norm), x.size(axis));
}

/**
 * Adds a gradient's squares to the running means, and divides it by their root, in its own memory.
 * @param share of the new squares in the means
 * @param eps added to the squares
 */
export function divideByFactoredRoot_(
  grad: Tensor,
  { exp_avg_sq: all, exp_avg_sq_row: row, exp_avg_sq_col: column }: Readonly<Record<string, Tensor>>,
  share: number,
  eps: number,
): void {
  const follow = (mean: Tensor, squares: Tensor) => ops.lerp_(mean, ops.addScalar(squares, eps), share);
  if (all) {
    ops.mul_(grad, ops.rsqrt(follow(all, ops.mul(grad, grad))));
    return;
  }
  follow(row!, meanSquare(grad, -1));
  follow(column!, meanSquare(grad, -2));
  ops.mul_(grad, ops.unsqueeze(ops.rsqrt(ops.div(row!, ops.meanDim(row!, [-1], true))), -1));
  ops.mul_(grad, ops.unsqueeze(ops.rsqrt(column!), -2));
}
