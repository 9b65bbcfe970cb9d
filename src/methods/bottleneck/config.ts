/** Bottleneck adapters' fields: names, defaults and meaning are those of AdapterHub (adapters/configuration/adapter_config.py). */
import { z } from 'zod';
import { GraftError } from '../../base/index.ts';
import {
  type Activation,
  activations,
  type BottleneckName,
  type CompleteBottleneck,
  namedBottlenecks,
  seqBn,
} from './named-configs.ts';

const flag = () => z.boolean().nullish();
const factor = z.number().positive();

/** Fields that are not set have the values of the named `config`. */
export const bottleneckConfig = z
  .strictObject({
    config: z
      .enum(Object.keys(namedBottlenecks) as [BottleneckName, ...BottleneckName[]])
      .default('seq_bn')
      .describe(
        'Named config with the defaults of the other fields: seq_bn (Pfeiffer), double_seq_bn (Houlsby), par_bn and scaled_par_bn (He), compacter and compacter++, adapter_plus; _inv: with an invertible adapter at the embeddings.',
      ),
    reduction_factor: z
      .union([factor, z.record(z.string(), factor)])
      .nullish()
      .describe(
        'Width of the model divided by the width of the bottleneck; or by layer, {"0": 2, default: 16}. Default: 16; par_bn 2; compacter 32.',
      ),
    non_linearity: z
      .enum(activations as unknown as [Activation, ...Activation[]])
      .nullish()
      .describe('Activation between the two projections.'),
    mh_adapter: flag().describe('A bottleneck after each attention.'),
    output_adapter: flag().describe('A bottleneck after each MLP.'),
    leave_out: z
      .array(z.int().nonnegative())
      .nullish()
      .describe('Layers without a bottleneck, counted from 0 (AdapterDrop, arXiv 2010.11918).'),
    is_parallel: flag().describe(
      'The bottleneck reads the residual stream before attention or MLP is added, not the output of attention or MLP.',
    ),
    scaling: z
      .union([z.number(), z.enum(['learned', 'channel'])])
      .nullish()
      .describe('Factor of the bottleneck’s output; learned: one trained number; channel: one for each channel.'),
    init_weights: z
      .enum(['bert', 'mam_adapter', 'houlsby'])
      .nullish()
      .describe(
        'Initial values. bert: normal, standard deviation 0.02; mam_adapter: as LoRA, so nothing changes at first; houlsby: normal, 0.01, truncated at 0.02.',
      ),
    init_weights_seed: z
      .int()
      .nonnegative()
      .nullish()
      .describe('Seed of the initial values. Default: the seed of the run.'),
    dropout: z.number().min(0).lt(1).nullish().describe('Dropout probability of the bottleneck’s output, in training.'),
    stochastic_depth: z
      .number()
      .min(0)
      .lt(1)
      .nullish()
      .describe('Probability that a row skips a bottleneck, in training (arXiv 1603.09382).'),
    use_gating: flag().describe(
      'A trained gate between 0 and 1 for each row (UniPELT). It reads the whole row, so it does not suit generation token by token.',
    ),
    original_ln_before: flag().describe(
      'The residual stream is added, and the base’s norm applied where one follows, before the bottleneck.',
    ),
    original_ln_after: flag().describe(
      'The residual stream is added, and the base’s norm applied where one follows, after the bottleneck.',
    ),
    ln_before: flag().describe('A trained layer norm before the bottleneck.'),
    ln_after: flag().describe('A trained layer norm after the bottleneck.'),
    residual_before_ln: z
      .union([z.boolean(), z.literal('post_add')])
      .nullish()
      .describe(
        'The residual of the bottleneck, with original_ln_before. true: before the stream is added; post_add: after that, before the norm; false: after the norm.',
      ),
    adapter_residual_before_ln: flag().describe('With ln_after: the residual is added before that norm.'),
    inv_adapter: z
      .literal('nice')
      .nullish()
      .describe('An invertible adapter after the embeddings (NICE, arXiv 1410.8516), for the languages of MAD-X.'),
    inverse_before_head: z
      .boolean()
      .default(false)
      .describe(
        'Apply the inverse of that adapter before the head of a language model (MAD-X). AdapterHub does so in its own model classes only, not in those of transformers.',
      ),
    inv_adapter_reduction_factor: factor
      .nullish()
      .describe('Reduction factor inside the invertible adapter. Default: 2.'),
    cross_adapter: z
      .literal(false)
      .nullish()
      .describe('AdapterHub: a bottleneck after cross-attention. No family of Graft has cross-attention.'),
    phm_layer: flag().describe('The projections are sums of Kronecker products (Compacter, arXiv 2106.04647).'),
    phm_dim: z.int().positive().nullish().describe('n: number of Kronecker products; it has to divide both widths.'),
    phm_rank: z.int().positive().nullish().describe('Rank of the large factors.'),
    phm_bias: flag().describe('The projections have biases.'),
    shared_phm_rule: flag().describe('One set of small factors [n, n, n] for all layers.'),
    factorized_phm_rule: flag().describe('The small factors have rank 1.'),
    learn_phm: z.literal(true).nullish().describe('AdapterHub: train the small factors. Graft always trains them.'),
    factorized_phm_W: flag().describe('The large factors have rank phm_rank.'),
    shared_W_phm: flag().describe('One set of large factors for all layers.'),
    phm_c_init: z
      .enum(['normal', 'uniform'])
      .nullish()
      .describe('Distribution of the initial values of the small factors.'),
    phm_init_range: z
      .number()
      .positive()
      .nullish()
      .describe('Standard deviation of the initial values of the small factors.'),
    hypercomplex_nonlinearity: z
      .string()
      .nullish()
      .describe('Ignored, as in AdapterHub: the large factors begin with Glorot’s normal values.'),
  })
  .describe(
    'Small bottlenecks with a residual connection after attention or MLP (arXiv 1902.00751, 2005.00247, 2110.04366). Fields and defaults are AdapterHub’s.',
  );

export type BottleneckConfig = z.infer<typeof bottleneckConfig>;

/** Returns the value of every field. @throws GraftError 'usage' for fields that exclude one another */
export function completeBottleneck({ config, inverse_before_head, ...fields }: BottleneckConfig): CompleteBottleneck {
  const set = Object.entries(fields).filter(([, value]) => value !== null && value !== undefined);
  const c = { ...seqBn, ...namedBottlenecks[config], ...Object.fromEntries(set) } as CompleteBottleneck;
  const error = (problem: string, place: string, hint: string) => new GraftError('usage', problem, { place, hint });
  if (!c.mh_adapter && !c.output_adapter) {
    throw error(
      'neither attention nor MLP has a bottleneck',
      'output_adapter',
      'Set mh_adapter: true or output_adapter: true',
    );
  }
  if (c.phm_layer && c.init_weights !== 'bert') {
    throw error(`phm_layer does not support init_weights: ${c.init_weights}`, 'init_weights', 'Leave it out');
  }
  if (inverse_before_head && !c.inv_adapter) {
    throw error('inverse_before_head needs an invertible adapter', 'inverse_before_head', 'Set inv_adapter: nice');
  }
  if (c.inv_adapter && c.inv_adapter_reduction_factor === null) return { ...c, inv_adapter_reduction_factor: 2 };
  return c;
}

/** Returns the width of the bottleneck in a layer. @throws GraftError 'usage' where `reduction_factor` has no value for it */
export function innerWidth({ reduction_factor: by }: CompleteBottleneck, width: number, layer: number): number {
  const value = typeof by === 'number' ? by : (by[layer] ?? by.default);
  if (value === undefined) {
    throw new GraftError('usage', `reduction_factor has no value for layer ${layer}`, {
      place: 'reduction_factor',
      hint: "Add a 'default' to the layers",
    });
  }
  return Math.max(1, floorDivide(width, value));
}

/** Returns a // b as in Python: for some factors one less than the floor of a / b, as 768 // 12.8 is 59. */
export function floorDivide(a: number, b: number): number {
  return Math.round((a - (a % b)) / b);
}
