/**
 * AdapterFusion (Pfeiffer et al., arXiv 2005.00247, §3.2): several saved bottleneck adapters work side by side, and what
 * each gives is mixed by attention: softmax(q·Kᵢ) over the adapters, with q from what they read, K and V from what they
 * give. Only the mixing is trained. Or their outputs are averaged with fixed weights (`config: average`).
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
  type SavableAdapter,
} from '../shared/index.ts';
import { type BottleneckPlace, type Bottlenecks, makeBottlenecks, plug } from './bottleneck.ts';
import type { BottleneckConfig } from './config.ts';
import { type FusionConfig, fusionConfig, Mixing, regularisation } from './fusion-layer.ts';
import type { Bottleneck, Reading } from './layer.ts';

type Child = Bottlenecks & { readonly name: string; readonly given: BottleneckConfig };

/** The adapters with their saved values, not at work by themselves. */
function children(model: Model, { adapters, config: kind }: FusionConfig, tools: AttachContext): Child[] {
  const made: Child[] = [];
  try {
    for (const dir of adapters) {
      const saved = tools.saved?.(dir);
      if (!saved) throw new GraftError('usage', 'saved adapters cannot be read from here', { place: dir });
      if (saved.method !== 'bottleneck') {
        throw new GraftError('usage', `only bottleneck adapters can be mixed, and this is ${saved.method}`, {
          place: dir,
        });
      }
      const given = saved.config as BottleneckConfig;
      const child = makeBottlenecks(model, given, 0);
      const taken = made.some(({ name }) => name === saved.name);
      made.push({ ...child, given, name: taken ? `${saved.name}-${made.length}` : saved.name });
      saved.fill(insideOf(made.at(-1)!));
      if (placesOf(child) !== placesOf(made[0]!)) {
        throw new GraftError('usage', 'it has bottlenecks at other places than the first adapter of the fusion', {
          place: dir,
          hint: 'Mix adapters with the same mh_adapter, output_adapter and leave_out',
        });
      }
      if (child.config.is_parallel && kind !== 'average') {
        throw new GraftError('usage', 'parallel adapters cannot be mixed: each reads the stream itself', {
          place: dir,
        });
      }
    }
    return made;
  } catch (cause) {
    for (const { parameters } of made) for (const tensor of parameters.values()) tensor.dispose();
    throw cause;
  }
}

const placesOf = ({ config: c }: Bottlenecks): string =>
  JSON.stringify([c.mh_adapter, c.output_adapter, [...c.leave_out].sort((a, b) => a - b)]);

const insideOf = ({ given, config, parameters }: Child): SavableAdapter => ({
  method: 'bottleneck',
  config: given,
  parameters,
  savedConfig: () => config,
});

export const fusion: Method<FusionConfig> = {
  name: 'fusion',
  adapterHub: true,
  config: fusionConfig,

  attach(model, config, seed, tools = {}): Adapter {
    const shares = normalizedWeights(config.weights ?? config.adapters.map(() => 1), config.adapters.length);
    const mixed = children(model, config, tools);
    const parameters = new Map<string, Tensor>();
    const mixings = new Map<string, Mixing>();
    if (config.config !== 'average') {
      using draws = new ParameterInit(mixSeed(seed, 1));
      for (let layer = 0; layer < model.layers; layer++) {
        for (const place of ['mh_adapter', 'output_adapter'] as const) {
          if (!mixed[0]!.at(layer, place)) continue;
          const mixing = new Mixing(config, draws, model.width);
          mixings.set(`${layer}.${place}`, mixing);
          for (const [key, tensor] of mixing.parameters) parameters.set(`layers.${layer}.${place}.${key}`, tensor);
        }
      }
    }
    const unused: string[] = [];
    mixed.forEach(({ name, parameters: own }, i) => {
      for (const [key, tensor] of own) {
        const idle = i > 0 && key.startsWith('invertible_adapters.');
        if (idle && !unused.includes(name)) unused.push(name);
        tensor.requiresGrad = config.train_adapters && !idle;
        if (tensor.requiresGrad) parameters.set(`adapters.${name}.${key}`, tensor);
      }
    });

    const average = (half: SublayerOutput, at: readonly [Bottleneck, number][]): Tensor => {
      const reading = at[0]![0].read(half);
      const outputs = at.map(([b, w]) => ops.mulScalar(b.forward(reading, half.rowStarts), w));
      return outputs.reduce((a, b) => ops.add(a, b));
    };
    const attend = (half: SublayerOutput, at: readonly [Bottleneck, number][], mixing: Mixing): Tensor => {
      const { x, around, query }: Reading = at.at(-1)![0].read(half);
      const outputs = at.map(([b]) => b.up(x, half.rowStarts));
      return mixing.forward(config.query_before_ln ? half.delta : query, around, outputs);
    };
    const state = { enabled: true };
    const unplug = plug(model, state, mixed[0]!.ends, (half, place: BottleneckPlace) => {
      const at = mixed.flatMap((child, i): [Bottleneck, number][] => {
        const here = child.at(half.layer, place);
        return here ? [[here, shares[i]!]] : [];
      });
      if (at.length === 0) return half.delta;
      const mixing = mixings.get(`${half.layer}.${place}`);
      const y = mixing ? attend(half, at, mixing) : average(half, at);
      return at.at(-1)![0].leave(y, half);
    });
    const values = [...parameters].filter(([key]) => key.endsWith('.value.weight')).map(([, tensor]) => tensor);
    const adapter: Adapter = {
      method: 'fusion',
      config,
      parameters,
      // As in AdapterHub.
      warnings: unused.map((name) => `the invertible block of ${name} is not used: only that of the first adapter is`),
      nested: new Map(mixed.map((child) => [child.name, insideOf(child)])),
      ...(values.length > 0 && config.regularization !== false && { regularisation: () => regularisation(values) }),
      get enabled() {
        return state.enabled;
      },
      set enabled(on: boolean) {
        state.enabled = on;
      },
      detach() {
        unplug();
        for (const part of [...mixed, ...mixings.values()]) {
          for (const tensor of part.parameters.values()) tensor.dispose();
        }
      },
      [Symbol.dispose]: () => adapter.detach(),
    };
    return adapter;
  },
};
