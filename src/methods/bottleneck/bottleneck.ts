/**
 * Bottleneck adapters: after a half of a block gives δ, which is to be added to the stream r, a bottleneck adds
 * s·W_up f(W_down h) to it. h is δ (Houlsby et al., arXiv 1902.00751: after attention and MLP), r + δ (Pfeiffer et al.,
 * arXiv 2005.00247: after the MLP) or r (parallel; He et al., arXiv 2110.04366). With Compacter's projections
 * (compacter.ts) and an invertible block at the embeddings (invertible.ts) where the config has them. Adapters on one
 * model stack in the order in which they were attached (MAD-X, arXiv 2005.00052), each with its invertible block, where
 * AdapterHub uses the first one's only.
 */
import { GraftError } from '../../base/index.ts';
import type { Model, Port, SublayerOutput } from '../../nn/index.ts';
import type { Tensor } from '../../tensor/index.ts';
import { type Adapter, type Method, ParameterInit } from '../shared/index.ts';
import { sharedPhm } from './compacter.ts';
import { type BottleneckConfig, bottleneckConfig, completeBottleneck, innerWidth } from './config.ts';
import { niceCoupling } from './invertible.ts';
import { activation, Bottleneck } from './layer.ts';
import type { CompleteBottleneck } from './named-configs.ts';

/** The places in a block, by AdapterHub's names. */
const places = ['mh_adapter', 'output_adapter'] as const;
export type BottleneckPlace = (typeof places)[number];

/** All that an adapter computes, not yet at work on a model. */
export interface Bottlenecks {
  /** `layers.0.output_adapter.adapter_up.weight`, `shared_parameters.phm_rule`, `invertible_adapters.F.0.weight`, … */
  readonly parameters: ReadonlyMap<string, Tensor>;
  readonly config: CompleteBottleneck;
  at(layer: number, place: BottleneckPlace): Bottleneck | undefined;
  /** What embeddings and last hidden states go through; the latter in language models only. */
  readonly ends: Pick<Port, 'afterEmbedding' | 'afterFinalNorm'>;
}

/** @throws GraftError 'usage' for a config that fits no layer */
export function makeBottlenecks(model: Model, given: BottleneckConfig, seed: number): Bottlenecks {
  const config = completeBottleneck(given);
  if (model.sites.normAfter && !config.original_ln_after) {
    throw new GraftError('usage', 'original_ln_after: false is for families that norm what goes into a half-block', {
      place: 'original_ln_after',
      hint: 'This one norms the sum behind it: leave the field out',
    });
  }
  using draws = new ParameterInit(config.init_weights_seed ?? seed);
  return draws.allOrNone(() => drawBottlenecks(model, given, config, draws));
}

function drawBottlenecks(
  model: Model,
  given: BottleneckConfig,
  config: CompleteBottleneck,
  draws: ParameterInit,
): Bottlenecks {
  const { width } = model;
  const parameters = new Map<string, Tensor>();
  const add = (at: string, part: { readonly parameters: ReadonlyMap<string, Tensor> }) => {
    for (const [key, tensor] of part.parameters) parameters.set(`${at}.${key}`, tensor);
  };
  const shared = config.phm_layer ? sharedPhm(config, draws, width, innerWidth(config, width, 0)) : undefined;
  const found = new Map<string, Bottleneck>();
  for (let layer = 0; layer < model.layers; layer++) {
    if (config.leave_out.includes(layer)) continue;
    for (const place of places) {
      if (!config[place]) continue;
      const bottleneck = new Bottleneck(config, draws, width, innerWidth(config, width, layer), shared);
      found.set(`${layer}.${place}`, bottleneck);
      add(`layers.${layer}.${place}`, bottleneck);
    }
  }
  if (shared) add('shared_parameters', shared);
  const coupling = config.inv_adapter
    ? niceCoupling(draws, width, config.inv_adapter_reduction_factor!, activation(config.non_linearity))
    : undefined;
  if (coupling) add('invertible_adapters', coupling);
  const undone = given.inverse_before_head && model.task.name === 'causal-lm';
  return {
    parameters,
    config,
    at: (layer, place) => found.get(`${layer}.${place}`),
    ends: coupling
      ? {
          afterEmbedding: (x) => coupling.forward(x),
          ...(undone && { afterFinalNorm: (x: Tensor) => coupling.inverse(x) }),
        }
      : {},
  };
}

/** Puts a computation at both places of the blocks into a model. Call what it returns to take it out. */
export function plug(
  model: Model,
  state: { enabled: boolean },
  ends: Bottlenecks['ends'],
  at: (half: SublayerOutput, place: BottleneckPlace) => Tensor,
): () => void {
  return model.ports.add({
    get enabled() {
      return state.enabled;
    },
    afterAttention: (half) => at(half, 'mh_adapter'),
    afterMlp: (half) => at(half, 'output_adapter'),
    ...ends,
  });
}

export const bottleneck: Method<BottleneckConfig> = {
  name: 'bottleneck',
  adapterHub: true,
  config: bottleneckConfig,

  attach(model, config, seed): Adapter {
    const made = makeBottlenecks(model, config, seed);
    const state = { enabled: true };
    const unplug = plug(model, state, made.ends, (half, place) => {
      const here = made.at(half.layer, place);
      return here ? here.leave(here.forward(here.read(half), half.rowStarts), half) : half.delta;
    });
    const far = made.config.leave_out.filter((layer) => layer >= model.layers);
    const adapter: Adapter = {
      method: 'bottleneck',
      config,
      parameters: made.parameters,
      warnings: far.length > 0 ? [`leave_out names layers ${far.join(', ')}, and the model has ${model.layers}`] : [],
      get enabled() {
        return state.enabled;
      },
      set enabled(on: boolean) {
        state.enabled = on;
      },
      savedConfig: () => made.config,
      detach() {
        unplug();
        for (const tensor of made.parameters.values()) tensor.dispose();
      },
      [Symbol.dispose]: () => adapter.detach(),
    };
    return adapter;
  },
};
