/**
 * AdapterFusion (Pfeiffer et al., arXiv 2005.00247, §3.2): several saved bottleneck adapters work in parallel, and attention mixes
 * their outputs: softmax(q·Kᵢ) over the adapters, with q from their input, K and V from their outputs. Only this attention is
 * trained. With `config: average`, the outputs are averaged with fixed weights.
 * Reference and fields: AdapterHub, methods/modeling.py BertFusion and configuration/adapter_fusion_config.py.
 */
import { GraftError } from '../../base/index.ts';
import type { Model, SublayerOutput } from '../../nn/index.ts';
import { mixSeed, ops, type Tensor } from '../../tensor/index.ts';
import {
  type Adapter,
  type AttachContext,
  type Method,
  normalizedWeights,
  ParameterInit,
  portAdapter,
  readSaved,
  type SavableAdapter,
} from '../shared/index.ts';
import {
  type BottleneckPlace,
  type Bottlenecks,
  bottleneckPlaces,
  bottleneckPort,
  makeBottlenecks,
} from './bottleneck.ts';
import type { BottleneckConfig } from './config.ts';
import { FusionAttention, type FusionConfig, fusionConfig, valueRegularisation } from './fusion-layer.ts';
import type { Bottleneck } from './layer.ts';

/** One of the mixed adapters. */
type MixedAdapter = Bottlenecks & { readonly name: string; readonly fields: BottleneckConfig };

/** Returns the adapters with their saved values, not attached to the model. */
function mixedAdapters(model: Model, { adapters, config: kind }: FusionConfig, context: AttachContext): MixedAdapter[] {
  const mixed: MixedAdapter[] = [];
  try {
    for (const dir of adapters) {
      const saved = readSaved(dir, context);
      if (saved.method !== 'bottleneck') {
        throw new GraftError('usage', `fusion supports bottleneck adapters only, and this is ${saved.method}`, {
          place: dir,
        });
      }
      const fields = saved.config as BottleneckConfig;
      const bottlenecks = makeBottlenecks(model, fields, 0, true);
      const isTaken = mixed.some(({ name }) => name === saved.name);
      mixed.push({ ...bottlenecks, fields, name: isTaken ? `${saved.name}-${mixed.length}` : saved.name });
      saved.fill(savable(mixed.at(-1)!));
      if (placesOf(bottlenecks) !== placesOf(mixed[0]!)) {
        throw new GraftError('usage', 'its bottlenecks are at other places than those of the first adapter', {
          place: dir,
          hint: 'Mix adapters with the same mh_adapter, output_adapter and leave_out',
        });
      }
      if (bottlenecks.config.is_parallel && kind !== 'average') {
        const problem = 'parallel adapters cannot be mixed by attention: each reads the residual stream itself';
        throw new GraftError('usage', problem, { place: dir, hint: 'Use config: average' });
      }
    }
    return mixed;
  } catch (cause) {
    for (const { parameters } of mixed) for (const tensor of parameters.values()) tensor.dispose();
    throw cause;
  }
}

/** Returns a text that is equal for adapters with bottlenecks at the same places. */
const placesOf = ({ config: c }: Bottlenecks): string =>
  JSON.stringify([c.mh_adapter, c.output_adapter, [...c.leave_out].sort((a, b) => a - b)]);

const savable = ({ fields, config, parameters }: MixedAdapter): SavableAdapter => ({
  method: 'bottleneck',
  config: fields,
  parameters,
  savedConfig: () => config,
});

/** Returns the attentions by `<layer>.<place>`, where the adapters have bottlenecks. */
function initAttentions(model: Model, config: FusionConfig, [first]: readonly MixedAdapter[], seed: bigint) {
  const attentions = new Map<string, FusionAttention>();
  if (config.config === 'average') return attentions;
  using init = new ParameterInit(seed);
  for (let layer = 0; layer < model.layers; layer++) {
    for (const place of bottleneckPlaces) {
      if (first!.at(layer, place)) attentions.set(`${layer}.${place}`, new FusionAttention(config, init, model.width));
    }
  }
  return attentions;
}

export const fusion: Method<FusionConfig> = {
  name: 'fusion',
  adapterHub: true,
  config: fusionConfig,

  attach(model, config, seed, context = {}): Adapter {
    const weights = normalizedWeights(config.weights ?? config.adapters.map(() => 1), config.adapters.length);
    const mixed = mixedAdapters(model, config, context);
    const attentions = initAttentions(model, config, mixed, mixSeed(seed, 1));
    const parameters = new Map<string, Tensor>();
    for (const [key, attention] of attentions) {
      for (const [name, tensor] of attention.parameters) parameters.set(`layers.${key}.${name}`, tensor);
    }
    const unusedInvertible = new Set<string>();
    mixed.forEach((adapter, i) => {
      for (const [key, tensor] of adapter.parameters) {
        const unused = i > 0 && key.startsWith('invertible_adapters.');
        if (unused) unusedInvertible.add(adapter.name);
        tensor.requiresGrad = config.train_adapters && !unused;
        if (tensor.requiresGrad) parameters.set(`adapters.${adapter.name}.${key}`, tensor);
      }
    });

    const averaged = (sublayer: SublayerOutput, layers: readonly Bottleneck[]): Tensor => {
      const input = layers[0]!.inputOf(sublayer);
      const outputs = layers.map((layer, i) => ops.mulScalar(layer.forward(input, sublayer.rowStarts), weights[i]!));
      return outputs.reduce((a, b) => ops.add(a, b));
    };
    const attended = (sublayer: SublayerOutput, layers: readonly Bottleneck[], attention: FusionAttention): Tensor => {
      const { x, residual, query } = layers.at(-1)!.inputOf(sublayer);
      const outputs = layers.map((layer) => layer.up(x, sublayer.rowStarts));
      return attention.forward(config.query_before_ln ? sublayer.delta : query, residual, outputs);
    };
    const deltaAt = (sublayer: SublayerOutput, place: BottleneckPlace) => {
      const layers = mixed.flatMap((adapter) => adapter.at(sublayer.layer, place) ?? []);
      if (layers.length === 0) return sublayer.delta;
      const attention = attentions.get(`${sublayer.layer}.${place}`);
      const y = attention ? attended(sublayer, layers, attention) : averaged(sublayer, layers);
      return layers.at(-1)!.deltaOf(y, sublayer);
    };
    const values = [...parameters].filter(([key]) => key.endsWith('.value.weight')).map(([, tensor]) => tensor);
    const fields = {
      method: 'fusion',
      config,
      parameters,
      // As in AdapterHub.
      warnings: [...unusedInvertible].map(
        (name) => `the invertible adapter of ${name} is not used: only that of the first adapter is`,
      ),
      nested: new Map(mixed.map((adapter) => [adapter.name, savable(adapter)])),
      ...(values.length > 0 &&
        config.regularization !== false && { regularisation: () => valueRegularisation(values) }),
    };
    return portAdapter(model, bottleneckPort(deltaAt, mixed[0]!.invertible), fields, () => {
      for (const module of [...mixed, ...attentions.values()]) {
        for (const tensor of module.parameters.values()) tensor.dispose();
      }
    });
  },
};
