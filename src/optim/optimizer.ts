import type { Tensor } from '../tensor/index.ts';

/** The part of an optimizer that the training step uses. */
export interface Optimizer extends Disposable {
  /** Updates every parameter that has a gradient, in place. */
  step(lr: number): void;
  /** The tensors of the optimizer's state by key; a checkpoint saves and restores them byte for byte. */
  readonly state: ReadonlyMap<string, Tensor>;
}
