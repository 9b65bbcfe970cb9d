import type { z } from 'zod';
import { GraftError } from '../base/index.ts';
import { ScratchFile } from '../io/index.ts';
import { type DType, detachFromScopes, dtypes, host, noGrad, ops, scope, type Tensor } from '../tensor/index.ts';

/** The part of an optimizer that the training step uses. */
export interface Optimizer extends Disposable {
  /** Updates every parameter that has a gradient, in place; the gradients stay. */
  step(lr: number): void;
  /** Present where backward passes update the parameters, so that `step` finds no gradient: what happens in that of one step. */
  inBackward?(lr: number): BackwardUpdates;
  /** The tensors kept for the parameters trained so far, as `KEY.SLOT`; a checkpoint saves and restores them byte for byte. */
  readonly state: ReadonlyMap<string, Tensor>;
  /** Makes the tensors of a checkpoint's names, to be filled; those of other names are freed. */
  prepare(names: Iterable<string>): void;
  /** Returns the bytes that are kept for these parameters from their first update on. */
  stateBytes(keys: Iterable<string>): number;
  /** Bytes of a file that holds all of it, where it is in one; else 0. */
  readonly fileBytes: number;
  /** Frees what is kept for these parameters, which are frozen now. Trained again, they begin with their first step. */
  release(keys: Iterable<string>): void;
}

/** The updates in the backward pass of one step, until this is disposed. */
export interface BackwardUpdates extends Disposable {
  /** 2-norm of the gradients so far, before anything clips them; of these parameters only, if keys are given. undefined: there are none. */
  gradNorm(keys?: Iterable<string>): number | undefined;
}

/** A tensor that an optimizer keeps for a parameter. It begins with zeros. */
export interface Slot {
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** A number that decides how the next update is computed, and so is kept where it is read, not on the parameter's device. */
  readonly onHost?: true;
}

/** A count of steps that the host reads. */
export const stepCount: Slot = { shape: [], dtype: 'float32', onHost: true };

/** Of a parameter, what `slots` is told. */
export interface TrainedShape {
  readonly shape: readonly number[];
  readonly inBlock: boolean;
}

/** Where parameters are, as only the model knows: both by the parameter's key. */
export interface Placement {
  /** The factor of the learning rate. Default: 1. */
  readonly rateFactor?: (key: string) => number;
  /** Whether it belongs to one of the repeated blocks. Default: none does. */
  readonly inBlock?: (key: string) => boolean;
  /** All that is trained, where other processes update the rest. Default: what this optimizer updates. */
  readonly trained?: ReadonlyMap<string, Tensor>;
  /** Where what is kept is instead of in memory. */
  readonly file?: ScratchFile | undefined;
}

/** A parameter with its gradient, and what is kept for it by the names of `slots`. */
export interface Trained {
  readonly key: string;
  readonly parameter: Tensor;
  readonly grad: Tensor;
  readonly slots: Readonly<Record<string, Tensor>>;
}

/** A way of updating parameters from their gradients. C is the type of its config. */
export interface OptimizerType<C> {
  /** The name in recipes. */
  readonly name: string;
  readonly config: z.ZodType<C>;
  /**
   * True: a parameter is updated in the backward pass, as soon as its gradient is complete, and the gradient is freed at once. `update` may
   * overwrite it. All rows of a step are then one micro-batch, and nothing can depend on all gradients.
   */
  readonly inBackward?: true;
  /** True: each number is updated by itself, from tensors of the parameter's shape and the count of steps. So a parameter can be divided. */
  readonly perNumber?: true;
  /**
   * What is kept for a parameter of this shape from its first update on: all of the optimizer's memory.
   * @param inBlock whether it belongs to one of the model's repeated blocks; embeddings and heads do not
   */
  slots(shape: readonly number[], config: C, inBlock: boolean): Readonly<Record<string, Slot>>;
  /** Refuses a config that does not fit what is trained. @throws GraftError 'usage' that names the parameters */
  check?(config: C, parameters: ReadonlyMap<string, TrainedShape>): void;
  /** Updates parameters in place. Those of one call share the learning rate and the weight decay. */
  update(group: readonly Trained[], rates: { readonly lr: number; readonly weightDecay: number }, config: C): void;
}

/** Returns an optimizer of these parameters. What it keeps for a parameter appears with the parameter's first gradient. */
export function makeOptimizer<C extends { readonly weight_decay: number }>(
  type: OptimizerType<C>,
  config: C,
  parameters: ReadonlyMap<string, Tensor>,
  { rateFactor = () => 1, inBlock = () => false, trained = parameters, file }: Placement,
): Optimizer {
  const shapes = [...trained].map(([key, { shape }]) => [key, { shape, inBlock: inBlock(key) }] as const);
  type.check?.(config, new Map(shapes));
  const namedSlots = (key: string) => Object.entries(type.slots(parameters.get(key)!.shape, config, inBlock(key)));
  const bytesOf = ({ shape, dtype }: Slot) => shape.reduce((a, b) => a * b, dtypes[dtype].bytes);
  /** Slots of less than a page stay in memory. */
  const fileOf = (slot: Slot) => (slot.onHost || bytesOf(slot) < ScratchFile.sizeOf([1]) ? undefined : file);
  const kept = new Map<string, Record<string, Tensor>>();
  const slotsOf = (key: string): Record<string, Tensor> => {
    let slots = kept.get(key);
    if (slots) return slots;
    slots = Object.fromEntries(
      namedSlots(key).map(([name, slot]) => {
        const { shape, dtype, onHost } = slot;
        const device = onHost ? host : parameters.get(key)!.device;
        const zeros = () => fileOf(slot)?.zeros(shape, dtype) ?? ops.zeros(shape, { dtype, device });
        return [name, detachFromScopes(noGrad(zeros))];
      }),
    );
    kept.set(key, slots);
    return slots;
  };
  const release = (keys: Iterable<string>) => {
    for (const key of keys) {
      for (const tensor of Object.values(kept.get(key) ?? {})) {
        if (file?.holds(tensor)) file.release(tensor);
        else tensor.dispose();
      }
      kept.delete(key);
    }
  };
  /** Biases and norms are never decayed. */
  const decayOf = ({ shape }: Tensor) => (shape.length > 1 ? config.weight_decay : 0);

  const trainedOf = ([key, parameter]: readonly [string, Tensor]): Trained[] => {
    const { grad } = parameter;
    return grad ? [{ key, parameter, grad, slots: slotsOf(key) }] : [];
  };
  /** Updates parameters that share the learning rate and the decay. */
  const update = (group: readonly Trained[], lr: number) => {
    const [{ key, parameter }] = group as [Trained];
    type.update(group, { lr: lr * rateFactor(key), weightDecay: decayOf(parameter) }, config);
    for (const { grad, slots } of group) {
      grad.dispose();
      for (const tensor of Object.values(slots)) if (file?.holds(tensor)) file.written(tensor);
    }
  };

  return {
    step(lr) {
      // As in torch, a parameter without a gradient is skipped: no decay, its state stays.
      noGrad(() => {
        if (file) {
          // One after the other, so that what was written to the file can leave memory.
          for (const entry of parameters) {
            const group = trainedOf(entry);
            if (group.length > 0) update(group, lr);
          }
          return;
        }
        const trained = [...parameters].flatMap(trainedOf);
        const groups = Map.groupBy(trained, ({ key, parameter }) => `${decayOf(parameter)} ${rateFactor(key)}`);
        for (const group of groups.values()) update(group, lr);
      });
    },
    ...(type.inBackward && {
      inBackward: (lr: number) => updatesInBackward(parameters, (entry) => update(trainedOf(entry), lr)),
    }),

    get state() {
      const named = [...kept].flatMap(([key, slots]) =>
        Object.entries(slots).map(([name, tensor]) => [`${key}.${name}`, tensor] as const),
      );
      return new Map(named);
    },

    prepare(names) {
      const wanted = new Set(names);
      for (const key of parameters.keys()) {
        if (namedSlots(key).some(([slot]) => wanted.has(`${key}.${slot}`))) slotsOf(key);
        else release([key]);
      }
    },
    stateBytes(keys) {
      const slots = [...keys].flatMap((key) => namedSlots(key).map(([, slot]) => slot));
      return slots.reduce((sum, slot) => sum + bytesOf(slot), 0);
    },
    get fileBytes() {
      const slots = [...parameters.keys()].flatMap((key) => namedSlots(key).map(([, slot]) => slot));
      return ScratchFile.sizeOf(slots.filter(fileOf).map(bytesOf));
    },
    release,
    [Symbol.dispose]: () => release([...kept.keys()]),
  };
}

/**
 * Calls `update` for each parameter in the backward pass, when its gradient is complete, and frees the gradient. From the first gradient on
 * that is not finite, parameters stay as they are, and `gradNorm` is not finite.
 * @throws GraftError 'usage' from the backward pass where a parameter gets a second gradient in the step
 */
function updatesInBackward(
  parameters: ReadonlyMap<string, Tensor>,
  update: (entry: readonly [string, Tensor]) => void,
): BackwardUpdates {
  const squares = new Map<string, number>();
  let allFinite = true;
  for (const entry of parameters) {
    const [key, parameter] = entry;
    parameter.onGradient(() => {
      using _ = scope();
      if (squares.has(key)) {
        throw new GraftError(
          'usage',
          `${key} gets a second gradient in the step, after the backward pass has updated it`,
          {
            place: 'train.optimizer',
            hint: 'Set gradient_checkpointing: false where several blocks share a parameter, or use adamw',
          },
        );
      }
      noGrad(() => {
        const square = ops.vectorNorm(parameter.grad!, 2).item() ** 2;
        squares.set(key, square);
        allFinite &&= Number.isFinite(square);
        if (allFinite) update(entry);
      });
      parameter.grad = undefined;
    });
  }
  return {
    gradNorm(keys = squares.keys()) {
      const found = [...keys].flatMap((key) => squares.get(key) ?? []);
      return found.length > 0 ? Math.sqrt(found.reduce((a, b) => a + b)) : undefined;
    },
    [Symbol.dispose]() {
      for (const parameter of parameters.values()) parameter.onGradient(undefined);
    },
  };
}
