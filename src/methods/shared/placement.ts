/** What an adapter has put on a model, in the form in which banks take it over to serve it beside others (methods/banks/). */
import type { Module, Port, RunActivation } from '../../nn/index.ts';
import type { Tensor } from '../../tensor/index.ts';
import type { TrainedCopies } from './copies.ts';
import type { Fold } from './folds.ts';
import type { Adapter } from './method.ts';

/** A bottleneck as numbers: δ ← δ + scaling·(W_up f(W_down x + b_down) + b_up), where δ is what a sublayer adds to the stream. */
export interface PlainBottleneck {
  /** x: δ itself, the stream before it, their sum, or the norm of that. */
  readonly input: 'delta' | 'residual' | 'sum' | 'norm';
  /** Weight and bias of each: W_down [R, C], W_up [C, R]. */
  readonly down: readonly [Tensor, Tensor];
  readonly up: readonly [Tensor, Tensor];
  readonly f: RunActivation;
  readonly scaling: number;
}

/** Where a block lets methods change what it adds to the stream. */
export type Sublayer = 'afterAttention' | 'afterMlp';

/** What a method adds through a port. */
export interface PlacedPort extends Omit<Port, 'enabled'> {
  /**
   * What `afterAttention` and `afterMlp` compute, by the block's number and the place; undefined where it cannot be said as numbers.
   * Its weights are of no use to the port afterwards.
   */
  bottlenecks?(): ReadonlyMap<`${number}.${Sublayer}`, PlainBottleneck> | undefined;
}

/** What an adapter has put on a model. */
export interface AdapterPlacement {
  /** In the order in which they were put on. */
  readonly wrappers: readonly { readonly path: string; readonly wrapper: Module }[];
  readonly copies: readonly TrainedCopies[];
  readonly baseChanges: readonly { readonly path: string; readonly change: Fold }[];
  readonly ports: readonly PlacedPort[];
  /** Takes it off the model. Its tensors live until the adapter is detached. */
  withdraw(): void;
}

const placements = new WeakMap<Adapter, AdapterPlacement>();

/** Records what an adapter has put on its model, and returns the adapter. */
export function placed<A extends Adapter>(adapter: A, placement: AdapterPlacement): A {
  placements.set(adapter, placement);
  return adapter;
}

/** Returns what an adapter has put on its model; undefined: it said nothing, and rows that use it cannot share a batch with others. */
export const placementOf = (adapter: Adapter): AdapterPlacement | undefined => placements.get(adapter);
