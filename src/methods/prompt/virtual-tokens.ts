/**
 * What the methods of virtual tokens share: their vectors and the encoder that may compute them, their room in the context, and
 * PEFT's file, which stores one tensor, `prompt_embeddings` (config.py, PromptLearningConfig), also where an encoder computes it.
 * Letters: T virtual tokens, W numbers in each (C of a prompt, 2·L·K·D of a prefix).
 */
import { z } from 'zod';
import { GraftError } from '../../base/index.ts';
import type { Model, Port } from '../../nn/index.ts';
import { noGrad, ops, type Tensor } from '../../tensor/index.ts';
import { type Adapter, ParameterInit, portAdapter } from '../shared/index.ts';

export const virtualFields = {
  num_virtual_tokens: z.int().positive().describe('T: number of virtual tokens before every row.'),
};

/** The same field for methods that may begin from a text. */
export const lengthField = virtualFields.num_virtual_tokens
  .optional()
  .describe('T: number of virtual tokens before every row. Default: the number of tokens of the initial text.');

const vectorsKey = 'prompt_embeddings';

/** Checks that the virtual tokens leave room for at least one token of a row. @throws GraftError 'usage' */
export function requireSpace(model: Model, count: number): void {
  const taken = model.ports.virtualLength;
  if (taken + count < model.contextLength) return;
  const others = taken > 0 ? ` beside the ${taken} that are attached already` : '';
  const problem = `${count} virtual tokens${others} leave no room for rows: the context length is ${model.contextLength}`;
  throw new GraftError('usage', problem, { place: 'num_virtual_tokens', hint: 'Use fewer virtual tokens' });
}

/** A network that computes the vectors, and its parameters by PEFT's names. */
export interface Encoder {
  readonly parameters: ReadonlyMap<string, Tensor>;
  /** [T, W] */
  forward(): Tensor;
}

/** The vectors [T, W] of the virtual tokens: parameters themselves, parameters times a fixed scale [1, W], or an encoder's output. */
export class VirtualVectors {
  readonly shape: readonly [number, number];
  readonly parameters = new Map<string, Tensor>();
  #encoder: Encoder | undefined;
  readonly #scale: Tensor | undefined;

  constructor(shape: readonly [number, number], source: Tensor | Encoder, scale?: Tensor) {
    this.shape = shape;
    this.#scale = scale;
    if (!('forward' in source)) {
      this.parameters.set(vectorsKey, source);
      return;
    }
    this.#encoder = source;
    for (const [name, tensor] of source.parameters) this.parameters.set(`prompt_encoder.${name}`, tensor);
  }

  value(): Tensor {
    if (this.#encoder) return this.#encoder.forward();
    const parameter = this.parameters.get(vectorsKey)!;
    return this.#scale ? ops.mul(parameter, this.#scale) : parameter;
  }

  get savedTensors(): Adapter['savedTensors'] {
    return this.#scale && (() => new Map([[vectorsKey, this.value()]]));
  }

  get derived(): Adapter['derived'] {
    if (!this.#encoder) return undefined;
    return {
      name: vectorsKey,
      value: () => noGrad(() => ops.contiguous(this.value())),
      adopt: () => {
        this.dispose();
        this.#encoder = undefined;
        this.parameters.clear();
        using init = new ParameterInit(0);
        this.parameters.set(vectorsKey, init.full(this.shape, 0));
      },
    };
  }

  dispose(): void {
    for (const tensor of this.parameters.values()) tensor.dispose();
    this.#scale?.dispose();
  }
}

type AdapterFields = Pick<Adapter, 'advise' | 'savedConfig'> & { readonly warnings?: readonly string[] };

/**
 * Returns the adapter of virtual tokens, attached to the model.
 * @param others parameters beside the vectors, by their names in PEFT's file
 */
export function virtualAdapter(
  model: Model,
  method: string,
  config: Adapter['config'],
  vectors: VirtualVectors,
  port: Omit<Port, 'enabled'>,
  { advise, savedConfig, warnings = [] }: AdapterFields,
  others: ReadonlyMap<string, Tensor> = new Map(),
): Adapter {
  const isPrefix = port.prefix !== undefined;
  const queryHeads = (model.config.num_attention_heads ?? model.config.n_head ?? model.kvHeads) as number;
  const { savedTensors } = vectors;
  const fields = {
    method,
    config,
    get parameters() {
      return new Map([...vectors.parameters, ...others]);
    },
    warnings,
    ...(advise && { advise }),
    // PEFT fills these fields in from the base (utils/other.py, _prepare_prompt_learning_config).
    savedConfig: (base?: string) => ({
      modules_to_save: null,
      token_dim: isPrefix ? model.kvHeads * model.headDim : model.width,
      num_attention_heads: isPrefix ? model.kvHeads : queryHeads,
      num_layers: model.layers,
      num_transformer_submodules: 1,
      ...savedConfig?.(base),
    }),
    fileKey: (key: string) => key,
    get derived() {
      return vectors.derived;
    },
    ...(savedTensors && { savedTensors: () => new Map([...savedTensors(), ...others]) }),
  };
  return portAdapter(model, port, fields, () => {
    vectors.dispose();
    for (const tensor of others.values()) tensor.dispose();
  });
}
