import type { GgufField, GgufMetadata, GgufTensor, WeightSource } from '../io/index.ts';
import type { Model, ModelWeights, TaskHead, TaskName } from '../nn/index.ts';

/** The mapping from a GGUF file of this family to the checkpoint that `build` reads. */
export interface GgufNames {
  /** Returns the checkpoint's key for a tensor of the GGUF file; undefined: not a weight of the model. */
  key(name: string): string | undefined;
  /** Returns the GGUF file's name of a tensor with the checkpoint's key; undefined: the architecture has no such tensor. */
  name(key: string): string | undefined;
  /**
   * Returns the number of heads where GGUF interleaves the rows of each (q and k of the `llama` architecture); undefined:
   * the order is the checkpoint's.
   */
  interleavedHeads(name: string): number | undefined;
}

/** What a GGUF file says of a model besides its weights and its tokenizer. */
export interface GgufModel {
  readonly fields: ReadonlyMap<string, GgufField>;
  /** Tensors that are no weights. */
  readonly tensors: readonly GgufTensor[];
  /** Where llama.cpp computes something else, a sentence each. */
  readonly notes: readonly string[];
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

/** A model family: architectures that one file builds. */
export interface Family {
  /** The values of `model_type` in `config.json`. */
  readonly types: readonly string[];
  /** Prefixes, one of which the keys of a checkpoint with a head have and those of one without do not: `bert`. */
  readonly prefixes: readonly string[];
  /** The tasks that models can be loaded for; the first is the default where the checkpoint names none. */
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
    /** Returns the `config.json` that the checkpoint of this GGUF file has. */
    config(source: WeightSource): Record<string, unknown>;
    /**
     * Returns what `config` reads.
     * @throws GraftError 'usage' for what the GGUF architecture does not compute
     */
    metadata(config: Readonly<Record<string, unknown>>): GgufModel;
  };
  /**
   * Builds the body, which all tasks share, and returns a function that builds a task's model: the body with the task's head.
   * Models of one body share its modules and ports, so that a method attached to one is attached to all; disposing of one
   * frees all.
   * @throws GraftError 'input' for an invalid config
   */
  build(config: Record<string, unknown>, weights: ModelWeights): (task: TaskHead) => Model;
}
