import type { Steps } from '../base/index.ts';
import type { WeightEntry } from '../io/index.ts';
import type { Adapter, Method, SavableAdapter } from '../methods/index.ts';
import type { HeadOptions } from '../models/index.ts';
import type { Model } from '../nn/index.ts';
import type { Tensor } from '../tensor/index.ts';

/** Parameters of a task's head by their keys in the model: `classifier.weight`, `classifier.bias`. */
export type HeadTensors = ReadonlyMap<string, Tensor>;

/** One method's adapter with all that a layout may save of it. */
export type LayoutAdapter = SavableAdapter & Partial<Pick<Adapter, 'derived' | 'fileKey' | 'nested' | 'savedTensors'>>;

/** The contents of a saved adapter's config file. */
export interface SavedConfig {
  /** The adapter's name in the keys of its tensors; the directory's name in a layout without such names. */
  readonly name: string;
  readonly method: string;
  /** The method's config, parsed by its schema. */
  readonly config: unknown;
  /** Path or id of the base model, where the file names one. */
  readonly base: string | undefined;
}

/** A layout of adapter directories that Graft loads onto a model and saves from one. */
export interface Layout {
  /** Whether the directory is in this layout, judged by its contents. */
  holds(dir: string): boolean;
  /** Whether adapters of the method are saved in this layout. */
  supports(method: Method<unknown>): boolean;
  /** @throws GraftError 'input' for methods and fields that Graft does not read */
  readConfig(dir: string): SavedConfig;
  /** The task and labels of the saved head; empty where the directory holds no head for a task of Graft. */
  headOptions(dir: string): HeadOptions;
  /** Whether the directory holds a head for none of Graft's tasks. */
  hasUnknownHead(dir: string): boolean;
  /** Paths of the model's modules, other than its head, that the saved head also consists of. */
  headModules(model: Model, dir: string): string[];
  /**
   * Copies the saved values into an adapter, and into the head; a step is a tensor.
   * @param head undefined: the model keeps its own head, and a saved one is ignored
   * @throws GraftError 'input' for a broken file, 'mismatch' listing every tensor that does not fit
   */
  load(model: Model, dir: string, adapter: LayoutAdapter, head: HeadTensors | undefined): Steps<void>;
  /**
   * Writes an adapter and the head into the empty directory `work`.
   * @param base path or id of the base model
   * @param name the adapter's name, where the layout has names
   * @param present is called before a tensor of the base is read
   */
  save(
    model: Model,
    adapter: LayoutAdapter,
    head: HeadTensors,
    work: string,
    options: {
      readonly base: string;
      readonly name: string;
      readonly present?: ((tensor: Tensor) => void) | undefined;
    },
  ): void;
  /** Every tensor that the directory holds. */
  storedTensors(dir: string): WeightEntry[];
}
