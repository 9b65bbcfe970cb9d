/**
 * Layer-wise training: says which layers of the methods beside it train in which step. It has no weights and writes nothing: the training
 * step freezes and frees what its policy leaves out.
 */
import { type Embedding, type Linear, type Model, moduleAt, unwrapped } from '../../nn/index.ts';
import { detachFromScopes, host, noGrad, ops } from '../../tensor/index.ts';
import type { Adapter, Method } from '../shared/index.ts';
import { choosing } from './choices.ts';
import { type LayerwiseConfig, layerwiseConfig, requireFields } from './config.ts';
import { scheduled } from './rules.ts';
import { stateSize } from './schedule-state.ts';

/** Whether the output projection to the vocabulary is the table of the embeddings. */
function sharesTable({ root, sites: { embeddings, head }, task }: Model): boolean {
  if (head === undefined || task.labels.length > 0) return false;
  const [table, output] = [embeddings, head].map((path) => unwrapped(moduleAt(root, path)));
  return (table as Embedding).weight === (output as Linear).weight;
}

export const layerwise: Method<LayerwiseConfig> = {
  name: 'layerwise',
  writes: 'nothing',
  config: layerwiseConfig,

  attach(model, config): Adapter {
    requireFields(config);
    const { policy, rules } = config;
    const { layers } = model;
    const state =
      policy === 'schedule'
        ? detachFromScopes(noGrad(() => ops.zeros([stateSize(layers)], { dtype: 'float64', device: host })))
        : undefined;
    let layerPolicy: Adapter['layerPolicy'];
    try {
      layerPolicy =
        policy === 'schedule'
          ? scheduled(rules!, layers, state!)
          : choosing(policy, config, { layers, sharesTable: sharesTable(model) });
    } catch (cause) {
      state?.dispose();
      throw cause;
    }
    const adapter: Adapter = {
      method: 'layerwise',
      writes: 'nothing',
      config,
      parameters: new Map(),
      enabled: true,
      layerPolicy,
      ...(state && { state: new Map([['schedule', state]]) }),
      warnings: [],
      merge() {},
      unmerge() {},
      detach: () => state?.dispose(),
      [Symbol.dispose]: () => adapter.detach(),
    };
    return adapter;
  },
};
