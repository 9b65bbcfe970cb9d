import type { LinearLayer } from '../../nn/index.ts';
import { Generator, ops, type Tensor } from '../../tensor/index.ts';
import { type Switch, type Table, trainable, type Wrapper } from '../shared/index.ts';
import type { InitialUpdate } from './base-changes.ts';
import type { LoraConfig } from './config.ts';
import { columnNorms, DoraEmbedding, DoraLinear, rowNorms } from './dora.ts';
import type { UpdateShape } from './init.ts';
import { LoraEmbedding, LoraLinear } from './layers.ts';

/**
 * Returns the wrapper of a layer, and its parameters by the end of their keys.
 * @param loading saved values follow: initial ones are not computed
 */
export function wrapperOf(
  base: LinearLayer | Table,
  { a, b }: InitialUpdate,
  { rank, scaling }: UpdateShape,
  { use_dora, lora_dropout, lora_bias, init_lora_weights }: LoraConfig,
  state: Switch,
  seed: bigint,
  loading = false,
): [Wrapper, [string, Tensor][]] {
  const table = !('inFeatures' in base);
  const parameters: [string, Tensor][] = table
    ? [
        ['lora_embedding_A', a],
        ['lora_embedding_B', b],
      ]
    : [
        ['lora_A.weight', a],
        ['lora_B.weight', b],
      ];
  if (use_dora) {
    const m = trainable(() => {
      if (loading) return ops.zeros([table ? base.width : base.outFeatures]);
      return table ? columnNorms(base, a, b, scaling) : rowNorms(base, a, b, scaling);
    });
    parameters.push(['lora_magnitude_vector', m]);
    if (table) return [new DoraEmbedding(base, a, b, m, scaling, state), parameters];
    return [new DoraLinear(base, a, b, m, scaling, lora_dropout, state), parameters];
  }
  if (table) return [new LoraEmbedding(base, a, b, scaling, state), parameters];
  if (!lora_bias) return [new LoraLinear(base, a, b, scaling, lora_dropout, state), parameters];
  using generator = new Generator(seed);
  const bias = trainable(() => {
    const zeros = ops.zeros([base.outFeatures]);
    return init_lora_weights ? zeros : ops.uniform_(zeros, -(rank ** -0.5), rank ** -0.5, { generator });
  });
  parameters.push(['lora_B.bias', bias]);
  return [new LoraLinear(base, a, b, scaling, lora_dropout, state, bias), parameters];
}
