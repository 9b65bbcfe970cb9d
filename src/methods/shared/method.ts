import type { z } from 'zod';
import type { Model, Rounding } from '../../nn/index.ts';
import type { Tensor } from '../../tensor/index.ts';
import type { LayerPolicy } from './layer-policy.ts';

/**
 * What a run leaves on disk: an adapter beside the base, a whole model, settings that are saved with what another method writes, or
 * nothing, where a method only decides how another is trained.
 */
export type Written = 'adapter' | 'model' | 'settings' | 'nothing';

/** A way of fine-tuning: its config, and how it is attached to a model. C is the type of the config. */
export interface Method<C> {
  /** The name in recipes. */
  readonly name: string;
  /** The `peft_type` of its files; absent where PEFT has no such type. */
  readonly peftType?: string;
  /** True where AdapterHub has a file layout for it and PEFT has none. */
  readonly adapterHub?: true;
  /**
   * What a run of it leaves. Default: an adapter. A method that writes a model trains the task's head in place, stands alone, and
   * begins from no saved adapter; one that writes settings or nothing stands beside a method that trains, and is attached after the
   * others, wherever it is listed.
   */
  readonly writes?: Written;
  /** True: every one of its parameters needs a gradient in every step, so none of them may be frozen for a while. */
  readonly needsAllGradients?: true;
  /** The fields under PEFT's own names, each with its default, unit, description and source. */
  readonly config: z.ZodType<C>;
  /** Fields that only training reads: the recipe's values count also for a saved adapter. */
  readonly trainingOnly?: readonly string[];
  /**
   * Attaches the method to the model. `detach` of the adapter undoes every change that this makes.
   * @param seed decides the initial values
   * @throws GraftError 'usage' when the config matches no module, or one that the method does not support
   */
  attach(model: Model, config: C, seed: number, context?: AttachContext): Adapter;
}

/** What a method may use when it is attached, besides the model. */
export interface AttachContext {
  /** Returns the ids of a text, with the special tokens that the model's tokenizer adds. */
  encode?(text: string): readonly number[];
  /** True when values of a saved adapter follow: the initial values then do not matter. */
  readonly loading?: boolean;
  /** True: the model's weights are zeros of the right shapes, and only the shapes of what is attached matter. */
  readonly shapesOnly?: boolean;
  /** Paths of further modules that are trained and saved with the task's head. */
  readonly headModules?: readonly string[];
  /** Reads a saved adapter of one method. @throws GraftError 'input' for a directory that is not an adapter */
  saved?(dir: string): SavedAdapter;
}

/** An adapter on disk, as methods that build on other adapters read it. */
export interface SavedAdapter {
  /** The adapter's name in its files, else the name of its folder. */
  readonly name: string;
  readonly method: string;
  readonly config: unknown;
  /** Whether it holds a task's head too, which `fill` leaves out. */
  readonly hasHead?: boolean;
  /** Copies the saved values into the parameters of an adapter that was made with this config. */
  fill(adapter: SavableAdapter): void;
}

/** The fields of an adapter that saving needs. */
export type SavableAdapter = Pick<Adapter, 'method' | 'config' | 'parameters' | 'savedConfig'>;

/** A method that is attached to a model. */
export interface Adapter extends Disposable {
  /** The name of the method in recipes. */
  readonly method: string;
  /** As in its method. Default: an adapter. */
  readonly writes?: Written;
  /** The fields that it was made with, with their defaults filled in. */
  readonly config: Readonly<Record<string, unknown>>;
  /** Exactly the tensors that are trained, counted, sharded and saved; keys are PEFT's without the prefix `base_model.model.`. */
  readonly parameters: ReadonlyMap<string, Tensor>;
  /** Keys of the base's tensors that it replaces by trained copies, or changes, while it is enabled: one adapter of several may. */
  readonly replaces?: ReadonlySet<string>;
  /** Those of them that it changes: adapters below it on these layers would be saved without this change. */
  readonly changes?: ReadonlySet<string>;
  /** How weights are rounded, by the path of their module. */
  readonly roundings?: ReadonlyMap<string, Rounding>;
  /** False: the model computes as if the adapter were not attached. Switching costs nothing. */
  enabled: boolean;
  /** Settings of the config that have no effect, such as pattern keys that match no module. */
  readonly warnings: readonly string[];
  /** Returns warnings about training this adapter at the learning rate `lr`. */
  advise?(lr: number): readonly string[];
  /**
   * Returns the fields of the saved config that differ from `config`, such as the names that `all-linear` stands for; a field
   * that is undefined is not written.
   * @param base path or id of the base
   */
  savedConfig?(base?: string): Readonly<Record<string, unknown>>;
  /**
   * Returns the tensors of the file where they are not `parameters`, such as a tied table that PEFT stores twice, or an update
   * for another base. They belong to the caller's scope.
   */
  savedTensors?(): ReadonlyMap<string, Tensor>;
  /** Returns the name of a parameter in PEFT's file. Absent: `base_model.model.` and its key. */
  fileKey?(key: string): string;
  /**
   * A tensor that the parameters compute and that PEFT stores in their place, such as the prompt of an encoder. Graft keeps the
   * parameters in a file beside it. Without that file, `adopt` makes the tensor itself the parameter.
   */
  readonly derived?: { readonly name: string; value(): Tensor; adopt(): void } | undefined;
  /** True: saved with the others and not trained (`train: false`). */
  frozen?: boolean;
  /** Adapters that this one works with, by name; they are saved in its directory. */
  readonly nested?: ReadonlyMap<string, SavableAdapter>;
  /** Takes the adapter off the model; the base is as before, bit for bit. */
  detach(): void;
  /** Adds the update to the base's weights; `unmerge` restores them. Absent: the adapter cannot be merged. */
  merge?(): void;
  /** Why this adapter cannot be merged, where others of its method can. */
  readonly unmergeable?: string | undefined;
  /** Restores the base's weights after `merge`. */
  unmerge?(): void;
  /** Chooses which parts of the model train in which step. */
  readonly layerPolicy?: LayerPolicy | undefined;
  /** Called before a step. `steps`: optimizer steps of the whole run. */
  beforeStep?(step: number, steps: number): void;
  /**
   * True: `beforeStep` changes nothing but what its trained parameters do. Else the frozen parts of the model may compute something else
   * in each step, and what they compute is not kept.
   */
  readonly changesTrainedOnly?: true;
  /** Called after the optimizer's update, while the gradients that it used still exist. */
  afterStep?(step: number): void;
  /** True: `afterStep` reads the gradients, which an optimizer that updates in the backward pass has freed by then. */
  readonly readsGradients?: boolean;
  /** Returns a scalar that is added to the loss of every step. */
  regularisation?(): Tensor;
  /** Returns the learning rate of a parameter when the run's is `lr`. Absent: the same. */
  learningRate?(key: string, lr: number): number;
  /** Tensors beside the parameters that a checkpoint needs to resume a run. */
  readonly state?: ReadonlyMap<string, Tensor>;
}
