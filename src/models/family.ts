import type { GgufMetadata } from '../io/index.ts';
import type { Model, TaskHead, TaskName, Weights } from '../nn/index.ts';

/** How a GGUF file of this family maps to the Hugging Face form that `build` reads. */
export interface GgufNames {
  /** A GGUF tensor's name → the checkpoint's key; undefined: not a weight of the model. */
  key(name: string): string | undefined;
  /** Heads whose rows GGUF stores interleaved (q and k of the `llama` architecture); undefined: rows as they are. */
  interleavedHeads(name: string): number | undefined;
}

/** One model family, one file. */
export interface Family {
  /** `model_type` of `config.json`. */
  readonly types: readonly string[];
  /** What stands before the keys of a checkpoint with a head and not before those of one without: `bert`; one of several. */
  readonly prefixes: readonly string[];
  /** What it can be loaded for; the first where the checkpoint does not say. */
  readonly tasks: readonly TaskName[];
  readonly gguf?: {
    readonly architectures: readonly string[];
    names(metadata: GgufMetadata): GgufNames;
    /** The `config.json` that this file would have had. */
    config(metadata: GgufMetadata, has: (name: string) => boolean): Record<string, unknown>;
  };
  /**
   * Builds what all tasks share, and returns what gives a task its model: the task's own head on that. Models of one body share
   * its modules and ports, so that a method that goes on one is on all; disposing of one frees all.
   * @throws GraftError 'input' for a config that is wrong in itself
   */
  build(config: Record<string, unknown>, weights: Weights): (task: TaskHead) => Model;
}
