import type { Tensor } from '../../tensor/index.ts';

/**
 * The change of a linear layer's output for the rows that use one adapter, as numbers: y ← gain ⊙ (y + Σ scaling·B A x) + shift,
 * where x is the layer's input and y what the base, or the update below, made of it.
 */
export interface RowUpdate {
  /** [in]: multiplies what the base, and every update below, reads. */
  readonly inputGain?: Tensor;
  /** A [R, in] and B [out, R] each. */
  readonly lowRank?: readonly { readonly a: Tensor; readonly b: Tensor; readonly scaling: number }[];
  /** [out] */
  readonly gain?: Tensor;
  /** [out] */
  readonly shift?: Tensor;
  /** What numbers cannot say, done last: returns y [n, out] changed, for x [n, in]. */
  after?(y: Tensor, x: Tensor): Tensor;
}
