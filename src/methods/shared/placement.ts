/** What an adapter has put on a model, in the form in which banks take it over to serve it beside others (methods/banks/). */
import type { Module, Port } from '../../nn/index.ts';
import type { Tensor } from '../../tensor/index.ts';
import type { TrainedCopies } from './copies.ts';
import type { Fold } from './folds.ts';

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

/** What an adapter has put on a model. */
export interface Placement {
  /** In the order in which they were put on. */
  readonly wrappers: readonly { readonly path: string; readonly wrapper: Module }[];
  readonly copies: readonly TrainedCopies[];
  readonly baseChanges: readonly { readonly path: string; readonly change: Fold }[];
  readonly ports: readonly Omit<Port, 'enabled'>[];
  /** Takes it off the model. Its tensors live until the adapter is detached. */
  withdraw(): void;
}
