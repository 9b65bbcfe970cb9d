/** AdapterFusion's fields, as AdapterHub's (configuration/adapter_fusion_config.py), and its attention at one place of a block. */
import { z } from 'zod';
import { dropout, gradEnabled, ops, type Tensor } from '../../tensor/index.ts';
import { identity, type ParameterInit } from '../shared/index.ts';

export const fusionConfig = z
  .strictObject({
    adapters: z.array(z.string()).min(1).describe('Directories of the saved bottleneck adapters to mix.'),
    config: z
      .enum(['dynamic', 'static', 'average'])
      .default('dynamic')
      .describe(
        'dynamic: attention with a value matrix; static: attention without one; average: fixed weights, nothing is trained.',
      ),
    weights: z
      .array(z.number())
      .nullish()
      .describe('For average: one weight for each adapter; they are divided by their sum.'),
    train_adapters: z.boolean().default(false).describe('Train the adapters too.'),
    query_before_ln: z
      .boolean()
      .default(false)
      .describe('The query is the output of attention or MLP, before the residual stream and the norm.'),
    residual_before: z
      .boolean()
      .default(false)
      .describe('The residual is added to keys and values, not to the output.'),
    value_before_softmax: z
      .boolean()
      .default(true)
      .describe('The value matrix is applied to the adapters’ outputs; false: to their mixture.'),
    dropout_prob: z
      .number()
      .min(0)
      .lt(1)
      .nullish()
      .describe(
        'Dropout probability of the attention scores. Default: 0, where AdapterHub uses the model’s own (0.1 in BERT).',
      ),
    regularization: z
      .boolean()
      .nullish()
      .describe(
        'Add 0.01 times the squared distance of the value matrices from the identity to the loss. Default: true for dynamic.',
      ),
  })
  .describe('A trained mixture of saved bottleneck adapters (AdapterFusion, arXiv 2005.00247).');

export type FusionConfig = z.infer<typeof fusionConfig>;

/** The attention over the adapters at one place of a block. Letters: N packed tokens, M adapters, C width. */
export class FusionAttention {
  readonly parameters = new Map<string, Tensor>();
  readonly #c: FusionConfig;

  constructor(c: FusionConfig, init: ParameterInit, width: number) {
    this.#c = c;
    for (const name of ['query', 'key']) {
      this.parameters.set(`${name}.weight`, init.normal([width, width], 0.02));
      this.parameters.set(`${name}.bias`, init.full([width], 0));
    }
    if (c.config === 'dynamic') this.parameters.set('value.weight', init.identity(width, 1e-6));
  }

  #linear(name: string, x: Tensor): Tensor {
    const weight = this.parameters.get(`${name}.weight`);
    return weight ? ops.linear(x, weight, this.parameters.get(`${name}.bias`)) : x;
  }

  /** query, residual and the M outputs of the adapters, [N, C] each → [N, C] */
  forward(query: Tensor, residual: Tensor, outputs: readonly Tensor[]): Tensor {
    const c = this.#c;
    let x = ops.stack(outputs, 1); // [N, M, C]
    if (c.residual_before) x = ops.add(x, ops.unsqueeze(residual, 1));
    const q = ops.unsqueeze(this.#linear('query', query), 1);
    let scores = ops.bmm(q, ops.transpose(this.#linear('key', x), 1, 2)); // [N, 1, M]
    if (c.dropout_prob && gradEnabled()) scores = dropout(scores, c.dropout_prob);
    const values = c.value_before_softmax ? this.#linear('value', x) : x;
    let y = ops.select(ops.bmm(ops.softmax(scores, -1), values), 1, 0);
    if (!c.value_before_softmax) y = this.#linear('value', y);
    return c.residual_before ? y : ops.add(y, residual);
  }
}

/** Returns 0.01·Σ ‖I − V‖² over the value matrices, a scalar (AdapterHub, model_mixin.py get_fusion_regularization_loss). */
export function valueRegularisation(values: readonly Tensor[]): Tensor {
  const distances = values.map((value) => ops.sum(ops.pow(ops.sub(identity(value.size(0)), value), 2)));
  return ops.mulScalar(
    distances.reduce((a, b) => ops.add(a, b)),
    0.01,
  );
}
