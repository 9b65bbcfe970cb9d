/**
 * Prefix tuning (Li and Liang, arXiv 2101.00190): in every layer T trained keys and values stand in front of a row's own,
 * attention(q, [Pₖ; k], [Pᵥ; v]); with a task's head this is P-tuning v2 (arXiv 2110.07602). Keys are as they are after
 * rotation, and a row's positions begin at T. Fields and file are PEFT's (tuners/prefix_tuning): [T, 2·L·K·D], layer i
 * at 2i (keys) and 2i + 1 (values); Graft adds `init_text`. Letters: T virtual tokens, L layers, K kv heads, D head size.
 *
 * From a text, P = s ∘ P̂ and P̂ is trained, s being the root mean square of each layer's keys and of its values in the text:
 * keys are three to ten times as large as values (SmolLM2), and one learning rate then moves each in its own measure.
 */
import { z } from 'zod';
import { GraftError } from '../../base/index.ts';
import { type Model, packTokens } from '../../nn/index.ts';
import { detachFromScopes, noGrad, ops, scope, type Tensor } from '../../tensor/index.ts';
import { type AttachContext, type Method, ParameterInit } from '../shared/index.ts';
import { idsOfText, lengthOfText, slowStart } from './prompt.ts';
import { type Encoder, lengthField, requireSpace, Vectors, virtualAdapter } from './virtual-tokens.ts';

export const prefixConfig = z
  .strictObject({
    num_virtual_tokens: lengthField,
    prefix_projection: z
      .boolean()
      .default(false)
      .describe(
        'The prefix is made by a two-layer perceptron with tanh, which is trained in its place and kept beside.',
      ),
    encoder_hidden_size: z
      .int()
      .positive()
      .nullish()
      .describe('Width inside the perceptron of prefix_projection. Default: the number of key heads times their size.'),
    init_weights: z
      .literal('zero')
      .nullish()
      .describe('zero: keys and values begin at zero. Default: normal numbers, which need a high learning rate.'),
    init_text: z
      .string()
      .nullish()
      .describe(
        'Begin from the keys and values that the base has for this text, repeated or cut to num_virtual_tokens; a step is then relative to the size of each layer’s keys and values. Not PEFT’s; by far the best start.',
      ),
  })
  .describe('Trained keys and values in front of every layer’s own (arXiv 2101.00190). Fields are PEFT’s.');

export type PrefixConfig = z.infer<typeof prefixConfig>;

/** What the base's layers have for the text: [T, 2·L·K·D], written into `prefix`. */
function readText(model: Model, prefix: Tensor, ids: readonly number[]): void {
  noGrad(() => {
    using _ = scope();
    const layers = model.ports.recordKeyValues(() => model.hidden(packTokens([ids])));
    const slots = layers.flatMap(({ k, v }) => [k, v]);
    ops.copy_(prefix, ops.view(ops.stack(slots, 1), prefix.shape));
    for (const tensor of slots) tensor.dispose();
  });
}

/** Divides each layer's keys and each layer's values by their root mean square, [1, 2·L·K·D], which is the outcome. */
function takeScale(prefix: Tensor, slots: number): Tensor {
  return noGrad(() => {
    using s = scope();
    const [count, width] = prefix.shape as [number, number];
    const values = ops.view(prefix, [count, slots, width / slots]);
    const size = ops.sqrt(ops.meanDim(ops.mul(values, values), [0, 2], true));
    const scale = ops.reshape(ops.expand(size, [1, slots, width / slots]), [1, width]);
    ops.copy_(prefix, ops.div(prefix, scale));
    return detachFromScopes(s.keep(scale));
  });
}

/** W₂ tanh(W₁ E + b₁) + b₂ over the rows of E [T, K·D]. */
function projection(config: PrefixConfig, count: number, dim: number, width: number, seed: number): Encoder {
  using draws = new ParameterInit(seed);
  const inner = config.encoder_hidden_size ?? dim;
  const embedding = draws.normal([count, dim], 1);
  const first = [draws.uniform([inner, dim], dim ** -0.5), draws.uniform([inner], dim ** -0.5)] as const;
  const bound = config.init_weights === 'zero' ? 0 : inner ** -0.5;
  const second = [draws.uniform([width, inner], bound), draws.uniform([width], bound)] as const;
  return {
    parameters: new Map([
      ['embedding.weight', embedding],
      ['transform.0.weight', first[0]],
      ['transform.0.bias', first[1]],
      ['transform.2.weight', second[0]],
      ['transform.2.bias', second[1]],
    ]),
    forward: () => ops.linear(ops.tanh(ops.linear(embedding, ...first)), ...second),
  };
}

/** The keys and values themselves, a parameter; in units of a scale where they begin from a text. */
function direct(
  model: Model,
  config: PrefixConfig,
  shape: readonly [number, number],
  seed: number,
  tools: AttachContext,
): Vectors {
  const { init_text: text } = config;
  const ids = text && !tools.loading ? idsOfText(text, 'init_text', tools, shape[0]) : undefined;
  using draws = new ParameterInit(seed);
  const prefix = ids || config.init_weights === 'zero' ? draws.full(shape, 0) : draws.normal(shape, 1);
  if (!ids) return new Vectors(shape, prefix);
  readText(model, prefix, ids);
  return new Vectors(shape, prefix, takeScale(prefix, 2 * model.layers));
}

export const prefix: Method<PrefixConfig> = {
  name: 'prefix',
  peftType: 'PREFIX_TUNING',
  config: prefixConfig,

  attach(model, config, seed, tools = {}) {
    const { prefix_projection: projected, init_text: text, init_weights } = config;
    const length = config.num_virtual_tokens ?? lengthOfText(text, 'init_text', tools);
    const { layers, kvHeads, headDim } = model;
    requireSpace(model, length);
    if (text && (projected || init_weights)) {
      throw new GraftError(
        'usage',
        `init_text cannot be had with ${projected ? 'prefix_projection' : 'init_weights'}`,
        {
          place: 'init_text',
          hint: 'Leave one of the two out',
        },
      );
    }
    const dim = kvHeads * headDim;
    const width = 2 * layers * dim;
    const vectors = projected
      ? new Vectors([length, width], projection(config, length, dim, width, seed))
      : direct(model, config, [length, width], seed, tools);
    const open = () => {
      const slots = ops.unbind(ops.view(vectors.value(), [length, 2 * layers, kvHeads, headDim]), 1);
      return (layer: number) => ({ k: slots[2 * layer]!, v: slots[2 * layer + 1]! });
    };
    const random = !text && init_weights !== 'zero' && !tools.loading;
    return virtualAdapter(
      model,
      'prefix',
      { ...config, num_virtual_tokens: length },
      vectors,
      { prefix: { length, open } },
      {
        ...(!projected && { advise: slowStart('prefix', random, 'begin from a text (init_text)') }),
        savedConfig: () => ({
          init_text: undefined,
          init_weights: init_weights ?? null,
          encoder_hidden_size: config.encoder_hidden_size ?? dim,
        }),
      },
    );
  },
};
