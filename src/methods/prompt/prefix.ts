/**
 * Prefix tuning (Li and Liang, arXiv 2101.00190): in every layer T trained keys and values precede a row's own,
 * attention(q, [Pₖ; k], [Pᵥ; v]); with a task's head this is P-tuning v2 (arXiv 2110.07602). Keys are stored after rotation, and a
 * row's positions begin at T. Fields and file are PEFT's (tuners/prefix_tuning): [T, 2·L·K·D], layer i at 2i (keys) and 2i + 1
 * (values); Graft adds `init_text`. Letters: T virtual tokens, L layers, K kv heads, D head size.
 *
 * From a text, P = s ∘ P̂ and P̂ is trained, where s is the root mean square of each layer's keys, and of its values, in the text:
 * keys are three to ten times as large as values (SmolLM2), and so one learning rate suits both.
 */
import { z } from 'zod';
import { GraftError } from '../../base/index.ts';
import { type Model, packTokens } from '../../nn/index.ts';
import { detachFromScopes, noGrad, ops, scope, type Tensor } from '../../tensor/index.ts';
import { type AttachContext, type Method, ParameterInit } from '../shared/index.ts';
import { adviseHigherRate, idsOfText, lengthOfText } from './prompt.ts';
import { type Encoder, lengthField, requireSpace, VirtualVectors, virtualAdapter } from './virtual-tokens.ts';

export const prefixConfig = z
  .strictObject({
    num_virtual_tokens: lengthField,
    prefix_projection: z
      .boolean()
      .default(false)
      .describe(
        'Train a two-layer perceptron (tanh) that computes the prefix, instead of the prefix itself; it is kept beside the adapter.',
      ),
    encoder_hidden_size: z
      .int()
      .positive()
      .nullish()
      .describe('Hidden size of that perceptron. Default: the number of key heads times their size.'),
    init_weights: z
      .literal('zero')
      .nullish()
      .describe('zero: keys and values begin at zero. Default: normal values, which need a high learning rate.'),
    init_text: z
      .string()
      .nullish()
      .describe(
        'Begin from the base’s keys and values of this text, repeated or cut to num_virtual_tokens; the learning rate is then relative to the size of each layer’s keys and values. Not a field of PEFT; by far the best initial values.',
      ),
  })
  .describe('Trained keys and values before every layer’s own (arXiv 2101.00190). Fields are PEFT’s.');

export type PrefixConfig = z.infer<typeof prefixConfig>;

/** Writes the keys and values that the base computes for a text into `prefix` [T, 2·L·K·D]. */
function readText(model: Model, prefix: Tensor, ids: readonly number[]): void {
  noGrad(() => {
    using _ = scope();
    const layers = model.ports.recordKeyValues(() => model.hidden(packTokens([ids])));
    const keysAndValues = layers.flatMap(({ k, v }) => [k, v]);
    ops.copy_(prefix, ops.view(ops.stack(keysAndValues, 1), prefix.shape));
    for (const tensor of keysAndValues) tensor.dispose();
  });
}

/** Divides each layer's keys, and its values, by their root mean square, and returns that scale [1, 2·L·K·D]. */
function normaliseByScale(prefix: Tensor, slots: number): Tensor {
  return noGrad(() => {
    using s = scope();
    const [count, width] = prefix.shape as [number, number];
    const values = ops.view(prefix, [count, slots, width / slots]);
    const rms = ops.sqrt(ops.meanDim(ops.mul(values, values), [0, 2], true));
    const scale = ops.reshape(ops.expand(rms, [1, slots, width / slots]), [1, width]);
    ops.copy_(prefix, ops.div(prefix, scale));
    return detachFromScopes(s.keep(scale));
  });
}

/** Returns the perceptron W₂ tanh(W₁ E + b₁) + b₂ over the rows of E [T, K·D]; its output is [T, width]. */
function projection(config: PrefixConfig, count: number, dim: number, width: number, seed: number): Encoder {
  using init = new ParameterInit(seed);
  const hidden = config.encoder_hidden_size ?? dim;
  const embedding = init.normal([count, dim], 1);
  const first = [init.uniform([hidden, dim], dim ** -0.5), init.uniform([hidden], dim ** -0.5)] as const;
  const bound = config.init_weights === 'zero' ? 0 : hidden ** -0.5;
  const second = [init.uniform([width, hidden], bound), init.uniform([width], bound)] as const;
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

/** Returns keys and values that are parameters themselves; from a text, they are divided by a scale. */
function directVectors(
  model: Model,
  config: PrefixConfig,
  shape: readonly [number, number],
  seed: number,
  context: AttachContext,
): VirtualVectors {
  const { init_text: text } = config;
  const ids = text && !context.loading ? idsOfText(text, 'init_text', context, shape[0]) : undefined;
  using init = new ParameterInit(seed, context.loading);
  const prefix = ids || config.init_weights === 'zero' ? init.full(shape, 0) : init.normal(shape, 1);
  if (!ids) return new VirtualVectors(shape, prefix);
  readText(model, prefix, ids);
  return new VirtualVectors(shape, prefix, normaliseByScale(prefix, 2 * model.layers));
}

export const prefix: Method<PrefixConfig> = {
  name: 'prefix',
  peftType: 'PREFIX_TUNING',
  config: prefixConfig,

  attach(model, config, seed, context = {}) {
    const { prefix_projection: projected, init_text: text, init_weights } = config;
    const length = config.num_virtual_tokens ?? lengthOfText(text, 'init_text', context);
    const { layers, kvHeads, headDim } = model;
    requireSpace(model, length);
    if (text && (projected || init_weights)) {
      const other = projected ? 'prefix_projection' : 'init_weights';
      throw new GraftError('usage', `init_text and ${other} exclude one another`, {
        place: 'init_text',
        hint: 'Leave out one of the two',
      });
    }
    const dim = kvHeads * headDim;
    const width = 2 * layers * dim;
    const vectors = projected
      ? new VirtualVectors([length, width], projection(config, length, dim, width, seed))
      : directVectors(model, config, [length, width], seed, context);
    const open = () => {
      const slots = ops.unbind(ops.view(vectors.value(), [length, 2 * layers, kvHeads, headDim]), 1);
      return (layer: number) => ({ k: slots[2 * layer]!, v: slots[2 * layer + 1]! });
    };
    const isRandom = !text && init_weights !== 'zero' && !context.loading;
    const fullConfig = { ...config, num_virtual_tokens: length };
    return virtualAdapter(
      model,
      'prefix',
      fullConfig,
      vectors,
      { prefix: { length, open } },
      {
        ...(!projected && { advise: adviseHigherRate('prefix', isRandom, 'begin from a text (init_text)') }),
        savedConfig: () => ({
          init_text: undefined,
          init_weights: init_weights ?? null,
          encoder_hidden_size: config.encoder_hidden_size ?? dim,
        }),
      },
    );
  },
};
