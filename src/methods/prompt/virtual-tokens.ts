/**
 * What methods of virtual tokens share: room for them, their vectors and what may make these, PEFT's file. PEFT stores one
 * tensor, `prompt_embeddings` (config.py, PromptLearningConfig), also where an encoder makes it.
 * Letters: T virtual tokens, W numbers of one (C of a prompt, 2·L·K·D of a prefix).
 */
import { z } from 'zod';
import { GraftError } from '../../base/index.ts';
import type { Model, Port } from '../../nn/index.ts';
import { noGrad, ops, type Tensor } from '../../tensor/index.ts';
import { type Adapter, ParameterInit } from '../shared/index.ts';

export const virtualFields = {
  num_virtual_tokens: z.int().positive().describe('T: virtual tokens in front of every row.'),
};

/** The same field for methods that may begin from a text. */
export const lengthField = virtualFields.num_virtual_tokens
  .optional()
  .describe('T: virtual tokens in front of every row. Default: as many as the text has that they begin from.');

const stored = 'prompt_embeddings';

/** @throws GraftError 'usage' where a row of one token would have no place behind the virtual ones */
export function requireSpace(model: Model, count: number): void {
  const taken = model.ports.virtualLength;
  if (taken + count < model.contextLength) return;
  const others = taken > 0 ? ` beside the ${taken} that are there` : '';
  const problem = `${count} virtual tokens${others} leave no room for rows: the model reads ${model.contextLength} tokens`;
  throw new GraftError('usage', problem, { place: 'num_virtual_tokens', hint: 'Use fewer' });
}

/** An encoder's parameters by PEFT's names, and what it makes of them. */
export interface Encoder {
  readonly parameters: ReadonlyMap<string, Tensor>;
  /** [T, W] */
  forward(): Tensor;
}

/** The vectors [T, W]: trained themselves, trained in units of a scale [1, W] that is not, or made by an encoder that is. */
export class Vectors {
  readonly shape: readonly [number, number];
  readonly parameters = new Map<string, Tensor>();
  #encoder: Encoder | undefined;
  readonly #scale: Tensor | undefined;

  constructor(shape: readonly [number, number], from: Tensor | Encoder, scale?: Tensor) {
    this.shape = shape;
    this.#scale = scale;
    if (!('forward' in from)) {
      this.parameters.set(stored, from);
      return;
    }
    this.#encoder = from;
    for (const [name, tensor] of from.parameters) this.parameters.set(`prompt_encoder.${name}`, tensor);
  }

  value(): Tensor {
    if (this.#encoder) return this.#encoder.forward();
    const own = this.parameters.get(stored)!;
    return this.#scale ? ops.mul(own, this.#scale) : own;
  }

  get saved(): Adapter['savedTensors'] {
    return this.#scale && (() => new Map([[stored, this.value()]]));
  }

  get made(): Adapter['derived'] {
    if (!this.#encoder) return undefined;
    return {
      name: stored,
      value: () => noGrad(() => ops.contiguous(this.value())),
      adopt: () => {
        this.dispose();
        this.#encoder = undefined;
        this.parameters.clear();
        using draws = new ParameterInit(0);
        this.parameters.set(stored, draws.full(this.shape, 0));
      },
    };
  }

  dispose(): void {
    for (const tensor of this.parameters.values()) tensor.dispose();
    this.#scale?.dispose();
  }
}

type Rest = Pick<Adapter, 'advise' | 'savedConfig'> & { readonly warnings?: readonly string[] };

/**
 * Puts virtual tokens on the model.
 * @param others parameters beside the vectors, by the names that PEFT's file has for them
 */
export function virtualAdapter(
  model: Model,
  method: string,
  config: Adapter['config'],
  vectors: Vectors,
  port: Omit<Port, 'enabled'>,
  { advise, savedConfig, warnings = [] }: Rest,
  others: ReadonlyMap<string, Tensor> = new Map(),
): Adapter {
  const state = { enabled: true };
  const live: Port = {
    ...port,
    get enabled() {
      return state.enabled;
    },
  };
  const remove = model.ports.add(live);
  let attached = true;
  const prefix = port.prefix !== undefined;
  const heads = (model.config.num_attention_heads ?? model.config.n_head ?? model.kvHeads) as number;
  const adapter: Adapter = {
    method,
    config,
    get parameters() {
      return new Map([...vectors.parameters, ...others]);
    },
    get enabled() {
      return state.enabled;
    },
    set enabled(on: boolean) {
      state.enabled = on;
    },
    warnings,
    ...(advise && { advise }),
    // PEFT fills these in from the base (utils/other.py, _prepare_prompt_learning_config).
    savedConfig: (base) => ({
      modules_to_save: null,
      token_dim: prefix ? model.kvHeads * model.headDim : model.width,
      num_attention_heads: prefix ? model.kvHeads : heads,
      num_layers: model.layers,
      num_transformer_submodules: 1,
      ...savedConfig?.(base),
    }),
    fileKey: (key) => key,
    get derived() {
      return vectors.made;
    },
    ...(vectors.saved && { savedTensors: () => new Map([...vectors.saved!(), ...others]) }),
    detach() {
      if (!attached) return;
      attached = false;
      remove();
      vectors.dispose();
      for (const tensor of others.values()) tensor.dispose();
    },
    [Symbol.dispose]: () => adapter.detach(),
  };
  return adapter;
}
