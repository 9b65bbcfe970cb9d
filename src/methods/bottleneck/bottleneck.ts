/**
 * Bottleneck adapters: where attention or MLP computes δ, which is added to the residual stream r, a bottleneck adds
 * s·W_up f(W_down h). h is δ (Houlsby et al., arXiv 1902.00751: after attention and MLP), r + δ (Pfeiffer et al.,
 * arXiv 2005.00247: after the MLP) or r (parallel; He et al., arXiv 2110.04366). The config may ask for Compacter's projections
 * (compacter.ts) and for an invertible adapter at the embeddings (invertible.ts). Adapters on one model form a stack in the order
 * in which they are attached (MAD-X, arXiv 2005.00052), each with its own invertible adapter; AdapterHub uses only the first one's.
 */
import { GraftError } from '../../base/index.ts';
import type { Model, Port, SublayerOutput } from '../../nn/index.ts';
import type { Tensor } from '../../tensor/index.ts';
import {
  type Adapter,
  type Method,
  ParameterInit,
  type PlainBottleneck,
  portAdapter,
  type Sublayer,
} from '../shared/index.ts';
import { sharedPhm } from './compacter.ts';
import { type BottleneckConfig, bottleneckConfig, completeBottleneck, innerWidth } from './config.ts';
import { niceCoupling } from './invertible.ts';
import { activation, Bottleneck } from './layer.ts';
import type { CompleteBottleneck } from './named-configs.ts';

/** The places of bottlenecks in a block, by AdapterHub's names: after attention, and after the MLP. */
export const bottleneckPlaces = ['mh_adapter', 'output_adapter'] as const;
export type BottleneckPlace = (typeof bottleneckPlaces)[number];

/** The bottlenecks of one adapter, not yet attached to a model. */
export interface Bottlenecks {
  /** `layers.0.output_adapter.adapter_up.weight`, `shared_parameters.phm_rule`, `invertible_adapters.F.0.weight`, … */
  readonly parameters: ReadonlyMap<string, Tensor>;
  readonly config: CompleteBottleneck;
  at(layer: number, place: BottleneckPlace): Bottleneck | undefined;
  /** The invertible adapter, and its inverse in language models that ask for it. */
  readonly invertible: Pick<Port, 'afterEmbedding' | 'afterFinalNorm'>;
}

/** Returns new bottlenecks for a model. @param loading saved values follow @throws GraftError 'usage' for a config that the model does not support */
export function makeBottlenecks(model: Model, fields: BottleneckConfig, seed: number, loading = false): Bottlenecks {
  const config = completeBottleneck(fields);
  if (model.sites.normAfter && !config.original_ln_after) {
    throw new GraftError('usage', 'original_ln_after: false needs a model that normalises the input of its sublayers', {
      place: 'original_ln_after',
      hint: 'This model normalises the sum after them (post-norm): leave the field out',
    });
  }
  using init = new ParameterInit(config.init_weights_seed ?? seed, loading);
  const inverse = fields.inverse_before_head && model.task.name === 'causal-lm';
  return init.allOrNone(() => initBottlenecks(model, config, inverse, init));
}

function initBottlenecks(model: Model, config: CompleteBottleneck, inverse: boolean, init: ParameterInit): Bottlenecks {
  const { width } = model;
  const parameters = new Map<string, Tensor>();
  const add = (prefix: string, module: { readonly parameters: ReadonlyMap<string, Tensor> }) => {
    for (const [key, tensor] of module.parameters) parameters.set(`${prefix}.${key}`, tensor);
  };
  const shared = config.phm_layer ? sharedPhm(config, init, width, innerWidth(config, width, 0)) : undefined;
  const bottlenecks = new Map<string, Bottleneck>();
  for (let layer = 0; layer < model.layers; layer++) {
    if (config.leave_out.includes(layer)) continue;
    for (const place of bottleneckPlaces) {
      if (!config[place]) continue;
      const bottleneck = new Bottleneck(config, init, width, innerWidth(config, width, layer), shared);
      bottlenecks.set(`${layer}.${place}`, bottleneck);
      add(`layers.${layer}.${place}`, bottleneck);
    }
  }
  if (shared) add('shared_parameters', shared);
  const coupling = config.inv_adapter
    ? niceCoupling(init, width, config.inv_adapter_reduction_factor!, activation(config.non_linearity))
    : undefined;
  if (coupling) add('invertible_adapters', coupling);
  return {
    parameters,
    config,
    at: (layer, place) => bottlenecks.get(`${layer}.${place}`),
    invertible: coupling
      ? {
          afterEmbedding: (x) => coupling.forward(x),
          ...(inverse && { afterFinalNorm: (x: Tensor) => coupling.inverse(x) }),
        }
      : {},
  };
}

/**
 * Returns the port of a computation at both places of the blocks.
 * @param deltaAt returns what the sublayer adds to the residual stream [N, C] instead of its `delta`
 */
export const bottleneckPort = (
  deltaAt: (sublayer: SublayerOutput, place: BottleneckPlace) => Tensor,
  invertible: Bottlenecks['invertible'],
): Omit<Port, 'enabled'> => ({
  afterAttention: (sublayer) => deltaAt(sublayer, 'mh_adapter'),
  afterMlp: (sublayer) => deltaAt(sublayer, 'output_adapter'),
  ...invertible,
});

const sublayers = { mh_adapter: 'afterAttention', output_adapter: 'afterMlp' } as const;

/** Returns all bottlenecks as numbers; undefined where one of them is more than that. */
function plainBottlenecks({ layers, sites }: Model, bottlenecks: Bottlenecks) {
  const plain = new Map<`${number}.${Sublayer}`, PlainBottleneck>();
  for (let layer = 0; layer < layers; layer++) {
    for (const place of bottleneckPlaces) {
      const bottleneck = bottlenecks.at(layer, place);
      const numbers = bottleneck?.plain(sites.normAfter ?? false);
      if (bottleneck && !numbers) return undefined;
      if (numbers) plain.set(`${layer}.${sublayers[place]}`, numbers);
    }
  }
  return plain;
}

export const bottleneck: Method<BottleneckConfig> = {
  name: 'bottleneck',
  adapterHub: true,
  config: bottleneckConfig,

  attach(model, config, seed, context): Adapter {
    const bottlenecks = makeBottlenecks(model, config, seed, context?.loading);
    const { parameters } = bottlenecks;
    const deltaAt = (sublayer: SublayerOutput, place: BottleneckPlace) => {
      const layer = bottlenecks.at(sublayer.layer, place);
      if (!layer) return sublayer.delta;
      return layer.deltaOf(layer.forward(layer.inputOf(sublayer), sublayer.rowStarts), sublayer);
    };
    const missing = bottlenecks.config.leave_out.filter((layer) => layer >= model.layers);
    const fields = {
      method: 'bottleneck',
      config,
      parameters,
      warnings:
        missing.length > 0 ? [`leave_out names layers ${missing.join(', ')}, and the model has ${model.layers}`] : [],
      savedConfig: () => bottlenecks.config,
    };
    const port = {
      ...bottleneckPort(deltaAt, bottlenecks.invertible),
      bottlenecks: () => plainBottlenecks(model, bottlenecks),
    };
    return portAdapter(model, port, fields, () => {
      for (const tensor of parameters.values()) tensor.dispose();
    });
  },
};
