import type { z } from 'zod';
import type { Model } from '../../nn/index.ts';
import type { Tensor } from '../../tensor/index.ts';

/** What training leaves on disk. */
export type Written = 'adapter' | 'model';

/** A way of fine-tuning: one file in this folder (design §5). */
export interface Method<C> {
  readonly name: string;
  /** `peft_type` of the files that hold it; absent where PEFT has no such type. */
  readonly peftType?: string;
  /** AdapterHub has a layout for it, and PEFT none. */
  readonly adapterHub?: true;
  /** What a run of it leaves: an adapter beside the base, or a whole model, trained with its head in place. Default: an adapter. */
  readonly writes?: Written;
  /** Default, unit, doc and source of every field, under PEFT's own names. */
  readonly config: z.ZodType<C>;
  /** Fields that training alone reads, and no file holds: those of a recipe count also where it begins from a saved adapter. */
  readonly trainingOnly?: readonly string[];
  /**
   * Puts the method on the model: changes nothing that `detach` does not undo.
   * @param seed decides the initial values
   * @throws GraftError 'usage' when the config selects nothing, or what cannot carry the method
   */
  attach(model: Model, config: C, seed: number, tools?: AttachContext): Adapter;
}

/** What initial values may be made with. */
export interface AttachContext {
  /** Ids of a text, with the special tokens that the model's tokenizer puts in. */
  encode?(text: string): readonly number[];
  /** The values come from a saved adapter: how they would begin does not matter. */
  readonly loading?: boolean;
  /** Paths of modules that are trained with the task's head and saved with it. */
  readonly headModules?: readonly string[];
  /** Reads a saved adapter of one method. @throws GraftError 'input' for what is none */
  saved?(dir: string): SavedAdapter;
}

/** An adapter on disk, for methods that work with others. */
export interface SavedAdapter {
  /** As its files call it, or its folder. */
  readonly name: string;
  readonly method: string;
  readonly config: unknown;
  /** Gives parameters of the method under this config their saved values. */
  fill(adapter: SavableAdapter): void;
}

/** What it takes to save an adapter. */
export type SavableAdapter = Pick<Adapter, 'method' | 'config' | 'parameters' | 'savedConfig'>;

/** A method at work on a model. */
export interface Adapter extends Disposable {
  readonly method: string;
  /** As its method says. Default: an adapter. */
  readonly writes?: Written;
  readonly config: Readonly<Record<string, unknown>>;
  /** Exactly what is trained, counted, sharded and saved; keys are PEFT's, without the `base_model.model.` in front. */
  readonly parameters: ReadonlyMap<string, Tensor>;
  /** Off: the model computes as if the adapter were not there. Switching costs nothing. */
  enabled: boolean;
  /** What the config asked for in vain: pattern keys that match nothing. */
  readonly warnings: readonly string[];
  /** What speaks against training this adapter at this learning rate. */
  advise?(lr: number): readonly string[];
  /**
   * Fields of the saved config that differ from `config`: what a word like `all-linear` came to; undefined: not written.
   * @param base path or id of the base
   */
  savedConfig?(base?: string): Readonly<Record<string, unknown>>;
  /**
   * What the file holds instead of `parameters`, keys alike: ends that share a table written twice, an update for another base.
   * Made in the caller's scope.
   */
  savedTensors?(): ReadonlyMap<string, Tensor>;
  /** The name of a parameter in PEFT's file. Absent: `base_model.model.` and its key. */
  fileKey?(key: string): string;
  /**
   * Where PEFT stores what the parameters make and not the parameters (the prompt that an encoder gives): that tensor's name
   * and value. Graft keeps the parameters in a file beside it; without that file, after `adopt`, the value itself is the parameter.
   */
  readonly derived?: { readonly name: string; value(): Tensor; adopt(): void } | undefined;
  /** Saved with the others, and not trained: `train: false`. */
  frozen?: boolean;
  /** Adapters that this one works with, by name: they are saved in its directory. */
  readonly nested?: ReadonlyMap<string, SavableAdapter>;
  /** Takes the adapter off; the base is as before, bit for bit. */
  detach(): void;
  /** Adds the adapter to the weights; `unmerge` puts the weights from before back. Absent: cannot be folded in. */
  merge?(): void;
  /** Why it cannot, where others of its method can. */
  readonly unmergeable?: string | undefined;
  unmerge?(): void;
  /** Layer-wise methods choose again what trains. `steps`: how many the run has in all. */
  beforeStep?(step: number, steps: number): void;
  /** After the optimizer's update, while the gradients that it used are still there. */
  afterStep?(step: number): void;
  /** A scalar that is added to the loss of every step. */
  regularisation?(): Tensor;
  /** Learning rate of a parameter where the run's is `lr`. Absent: the same. */
  learningRate?(key: string, lr: number): number;
  /** What a checkpoint keeps beside the parameters, for the run to go on as if never stopped. */
  readonly state?: ReadonlyMap<string, Tensor>;
}
