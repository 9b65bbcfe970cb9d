import type { GgufMetadata } from '../io/index.ts';
import type { Model, ModelWeights, TaskHead, TaskName } from '../nn/index.ts';

/** The mapping from a GGUF file of this family to the checkpoint that `build` reads. */
export interface GgufNames {
  /** Returns the checkpoint's key for a tensor of the GGUF file; undefined: not a weight of the model. */
  key(name: string): string | undefined;
  /**
   * Returns the number of heads where GGUF interleaves the rows of each (q and k of the `llama` architecture); undefined:
   * the order is the checkpoint's.
   */
  interleavedHeads(name: string): number | undefined;
}

/** A model family: architectures that one file builds. */
export interface Family {
  /** The values of `model_type` in `config.json`. */
  readonly types: readonly string[];
  /** Prefixes, one of which the keys of a checkpoint with a head have and those of one without do not: `bert`. */
  readonly prefixes: readonly string[];
  /** The tasks that models can be loaded for; the first is the default where the checkpoint names none. */
  readonly tasks: readonly TaskName[];
  readonly gguf?: {
    readonly architectures: readonly string[];
    names(metadata: GgufMetadata): GgufNames;
    /** Returns the `config.json` that the checkpoint of this GGUF file has. */
    config(metadata: GgufMetadata, has: (name: string) => boolean): Record<string, unknown>;
  };
  /**
   * Builds the body, which all tasks share, and returns a function that builds a task's model: the body with the task's head.
   * Models of one body share its modules and ports, so that a method attached to one is attached to all; disposing of one
   * frees all.
   * @throws GraftError 'input' for an invalid config
   */
  build(config: Record<string, unknown>, weights: ModelWeights): (task: TaskHead) => Model;
}
