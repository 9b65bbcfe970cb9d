/**
 * Full fine-tuning: every weight of the base is trained in place, since a copy would double the memory. `detach` keeps the trained
 * weights; load the model again to get the original ones.
 */
import { z } from 'zod';
import { GraftError } from '../base/index.ts';
import { Embedding, Linear, namedModules, namedTensors } from '../nn/index.ts';
import type { Tensor } from '../tensor/index.ts';
import type { Adapter, Method } from './shared/index.ts';

export const fullConfig = z
  .strictObject({})
  .describe(
    'Every weight of the base is trained. The run writes a whole model, so no other method stands beside it; the base must not be quantised (quantize: none).',
  );

export const full: Method<Record<string, never>> = {
  name: 'full',
  writes: 'model',
  config: fullConfig,

  attach(model): Adapter {
    for (const [path, module] of namedModules(model.root)) {
      if ((module instanceof Linear || module instanceof Embedding) && module.format >= 0) {
        throw new GraftError('usage', `'${path}' is quantised, and full fine-tuning needs dense weights`, {
          place: 'method',
          hint: 'Load the model with quantize: none, or use lora',
        });
      }
    }
    const rounded = [...namedTensors(model.root)].find(([, { dtype }]) => dtype === 'bfloat16');
    if (rounded) {
      throw new GraftError('usage', `'${rounded[0]}' is held in bfloat16, whose eight bits are too few for updates`, {
        place: 'method',
        hint: 'Set train.precision: float32, or use lora',
      });
    }
    // Tied weights are one tensor under two keys: it is trained and saved once.
    const parameters = new Map<string, Tensor>();
    const seen = new Set<Tensor>();
    for (const [key, tensor] of namedTensors(model.root)) {
      if (seen.has(tensor)) continue;
      seen.add(tensor);
      parameters.set(key, tensor);
      tensor.requiresGrad = true;
    }
    const adapter: Adapter = {
      method: 'full',
      writes: 'model',
      config: {},
      parameters,
      enabled: true,
      warnings: [],
      detach() {
        for (const tensor of parameters.values()) {
          tensor.grad = undefined;
          tensor.requiresGrad = false;
        }
      },
      [Symbol.dispose]: () => adapter.detach(),
    };
    return adapter;
  },
};
