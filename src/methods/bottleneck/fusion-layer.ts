/** What a fusion trains: fields as AdapterHub's (configuration/adapter_fusion_config.py), and the mixing at one place. */
import { z } from 'zod';
import { gradEnabled, ops, Tensor } from '../../tensor/index.ts';
import type { ParameterInit } from '../shared/index.ts';

export const fusionConfig = z
  .strictObject({
    adapters: z.array(z.string()).min(1).describe('Directories of the saved bottleneck adapters to mix.'),
    config: z
      .enum(['dynamic', 'static', 'average'])
      .default('dynamic')
      .describe(
        'dynamic: attention with a value matrix; static: without one; average: fixed weights, nothing to train.',
      ),
    weights: z.array(z.number()).nullish().describe('average: of each adapter; they are divided by their sum.'),
    train_adapters: z.boolean().default(false).describe('The adapters are trained too.'),
    query_before_ln: z
      .boolean()
      .default(false)
      .describe('The query is what the half-block gives, before sum and norm.'),
    residual_before: z.boolean().default(false).describe('The residual goes into keys and values, not around them.'),
    value_before_softmax: z.boolean().default(true).describe('The value matrix comes before the mixing, not after it.'),
    dropout_prob: z
      .number()
      .min(0)
      .lt(1)
      .nullish()
      .describe(
        'Share of the attention’s scores that is dropped. Default: none, where AdapterHub takes the model’s own (0.1 in BERT).',
      ),
    regularization: z
      .boolean()
      .nullish()
      .describe(
        'A hundredth of the squared distance of the value matrices from 1 is added to the loss; default: dynamic.',
      ),
  })
  .describe('A trained mixture of saved bottleneck adapters (AdapterFusion, arXiv 2005.00247).');

export type FusionConfig = z.infer<typeof fusionConfig>;

/** The mixing at one place: outputs [N, C] of the adapters → [N, C]. */
export class Mixing {
  readonly parameters = new Map<string, Tensor>();
  readonly #c: FusionConfig;

  constructor(c: FusionConfig, draws: ParameterInit, width: number) {
    this.#c = c;
    for (const name of ['query', 'key']) {
      this.parameters.set(`${name}.weight`, draws.normal([width, width], 0.02));
      this.parameters.set(`${name}.bias`, draws.full([width], 0));
    }
    if (c.config === 'dynamic') this.parameters.set('value.weight', draws.identity(width, 1e-6));
  }

  #linear(name: string, x: Tensor): Tensor {
    const weight = this.parameters.get(`${name}.weight`);
    return weight ? ops.linear(x, weight, this.parameters.get(`${name}.bias`)) : x;
  }

  forward(query: Tensor, around: Tensor, outputs: readonly Tensor[]): Tensor {
    const c = this.#c;
    let given = ops.stack(outputs, 1);
    if (c.residual_before) given = ops.add(given, ops.unsqueeze(around, 1));
    const q = ops.unsqueeze(this.#linear('query', query), 1);
    let scores = ops.bmm(q, ops.transpose(this.#linear('key', given), 1, 2));
    if (c.dropout_prob && gradEnabled()) scores = ops.dropout(scores, c.dropout_prob, true);
    const values = c.value_before_softmax ? this.#linear('value', given) : given;
    let y = ops.select(ops.bmm(ops.softmax(scores, -1), values), 1, 0);
    if (!c.value_before_softmax) y = this.#linear('value', y);
    return c.residual_before ? y : ops.add(y, around);
  }
}

/** 0.01·Σ ‖1 − V‖² (AdapterHub, model_mixin.py get_fusion_regularization_loss). */
export function regularisation(values: readonly Tensor[]): Tensor {
  const sum = values
    .map((value) => {
      const size = value.size(0);
      const one = Tensor.from(
        Float32Array.from({ length: size * size }, (_, i) => +(i % (size + 1) === 0)),
        [size, size],
      );
      return ops.sum(ops.pow(ops.sub(one, value), 2));
    })
    .reduce((a, b) => ops.add(a, b));
  return ops.mulScalar(sum, 0.01);
}
