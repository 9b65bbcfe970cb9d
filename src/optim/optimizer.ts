import type { Tensor } from '../tensor/index.ts';

/** What the training step needs of an optimizer. */
export interface Optimizer extends Disposable {
  /** Updates every parameter that has a gradient, in place. */
  step(lr: number): void;
  /** The optimizer's own memory by key: saved and restored with a checkpoint, byte for byte. */
  readonly state: ReadonlyMap<string, Tensor>;
}
