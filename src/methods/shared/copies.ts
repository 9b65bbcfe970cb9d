import type { Module } from '../../nn/index.ts';
import type { Tensor } from '../../tensor/index.ts';

/** A module of the base, and the trained copy that stands for it. */
export interface CopiedModule {
  readonly path: string;
  readonly original: Module;
  readonly copy: Module;
}

/** The bias of a module of the base, and the trained copy of it. */
export interface CopiedBias {
  readonly path: string;
  readonly module: Module;
  readonly original: Tensor;
  readonly copy: Tensor;
}

/** Copies of parts of the base, trained in their place: the base itself stays as it is. */
export interface TrainedCopies {
  readonly parameters: ReadonlyMap<string, Tensor>;
  /** Keys of the base's tensors that they stand for. */
  readonly replaces: readonly string[];
  readonly modules: readonly CopiedModule[];
  readonly biases: readonly CopiedBias[];
  /** Puts the copies into the model, or takes them out. */
  use(on: boolean): void;
  dispose(): void;
}

/** A module or tensor of the base of which several adapters may each have a copy. The copy that was switched on last is in use. */
export interface Slot<T> {
  readonly original: T;
  /** The copies that are switched on, in order. */
  active: T[];
  /** Puts a value into the model. */
  put(value: T): void;
}

export interface SlotCopy<T> {
  readonly slot: Slot<T>;
  readonly copy: T;
}

/** Returns copies as one unit and switches them on. When they are disposed, the model has what it had before. */
export function switchedCopies<T>(
  parameters: ReadonlyMap<string, Tensor>,
  copies: readonly SlotCopy<T>[],
  replaces: readonly string[],
  copied: Partial<Pick<TrainedCopies, 'modules' | 'biases'>>,
): TrainedCopies {
  const use = (on: boolean) => {
    for (const { slot, copy } of copies) {
      slot.active = slot.active.filter((other) => other !== copy);
      if (on) slot.active.push(copy);
      slot.put(slot.active.at(-1) ?? slot.original);
    }
  };
  use(true);
  return {
    parameters,
    replaces,
    modules: copied.modules ?? [],
    biases: copied.biases ?? [],
    use,
    dispose() {
      use(false);
      for (const tensor of parameters.values()) tensor.dispose();
    },
  };
}
