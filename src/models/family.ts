import type { GgufMetadata } from '../io/index.ts';
import type { Model, TaskHead, TaskName, Weights } from '../nn/index.ts';

/** How a GGUF file of this family maps to the Hugging Face form that `build` reads. */
export interface GgufNames {
  /** A GGUF tensor's name → the checkpoint's key; undefined: not a weight of the model. */
  key(name: string): string | undefined;
  /** Heads whose rows GGUF stores interleaved (q and k of the `llama` architecture); undefined: rows as they are. */
  interleavedHeads(name: string): number | undefined;
}

/** Names that AdapterHub (the library `adapters`) has for the layers of a family. */
export interface AdapterHubNames {
  /** Path of a block in the body, `*` for its number: `encoder.layer.*`. */
  readonly block: string;
  /** Module of a block that holds the bottleneck after attention. Default: `attention_adapters`. */
  readonly mh_adapter?: string;
  /** Module of a block that holds the bottleneck after the MLP. Default: `output_adapters`. */
  readonly output_adapter?: string;
  /** The two layers, with tanh between them, of the head that classifies rows: paths in the model. Default: it is one layer. */
  readonly rowHead?: readonly [first: string, second: string];
  /** Absent: PEFT has other names for the layers than AdapterHub, so LoRA and IA3 cannot be converted. */
  readonly updates?: {
    /** Attention layers of a block that LoRA and IA3 update, with their letters in `attn_matrices`; `qkv`: one layer for three. */
    readonly attention: Readonly<Record<string, string>>;
    /** Layers of the MLP that they update, with the field of the config that turns them on. */
    readonly mlp: Readonly<Record<string, 'intermediate_lora' | 'output_lora'>>;
    /** Beginning of the names of transformers' classes, by `model_type`: `Bert`. */
    readonly stems: Readonly<Record<string, string>>;
    /** The class that an adapter without a head is said to be for, where the base does not name its own. */
    readonly defaultClass: string;
  };
}

/** One model family, one file. */
export interface Family {
  /** `model_type` of `config.json`. */
  readonly types: readonly string[];
  /** What stands before the keys of a checkpoint with a head and not before those of one without: `bert`; one of several. */
  readonly prefixes: readonly string[];
  /** What it can be loaded for; the first where the checkpoint does not say. */
  readonly tasks: readonly TaskName[];
  /** Top-level modules that hold the output layer of a task; an adapter trains and saves the one of its task. */
  readonly heads: readonly string[];
  /** Top-level modules between the body and an output layer. */
  readonly headLayers?: readonly string[];
  /** Layers whose weight a checkpoint stores as [in, out] (transformers' Conv1D), by the last part of their paths. */
  readonly transposed?: readonly string[];
  /** Absent: AdapterHub does not have the family. */
  readonly adapterHub?: AdapterHubNames;
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
