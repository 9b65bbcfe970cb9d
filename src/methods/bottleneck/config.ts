/** Bottleneck adapters' fields: names, defaults and meaning are those of AdapterHub (adapters/configuration/adapter_config.py). */
import { z } from 'zod';
import { GraftError } from '../../base/index.ts';
import {
  type Activation,
  activations,
  type CompleteBottleneck,
  type BottleneckName as Name,
  namedBottlenecks as named,
  seqBn,
} from './named-configs.ts';

const flag = () => z.boolean().nullish();
const factor = z.number().positive();

/** Fields that are not given are those of the named `config`. */
export const bottleneckConfig = z
  .strictObject({
    config: z
      .enum(Object.keys(named) as [Name, ...Name[]])
      .default('seq_bn')
      .describe(
        'Where the other fields’ defaults come from: seq_bn (Pfeiffer), double_seq_bn (Houlsby), par_bn and scaled_par_bn (He), compacter and compacter++, adapter_plus; _inv: with an invertible block at the embeddings.',
      ),
    reduction_factor: z
      .union([factor, z.record(z.string(), factor)])
      .nullish()
      .describe(
        'Width of the model by width of the bottleneck; or by layer, {"0": 2, default: 16}. Default 16; parallel 2; Compacter 32.',
      ),
    non_linearity: z
      .enum(activations as unknown as [Activation, ...Activation[]])
      .nullish()
      .describe('Between the two projections.'),
    mh_adapter: flag().describe('A bottleneck after each attention.'),
    output_adapter: flag().describe('A bottleneck after each MLP.'),
    leave_out: z
      .array(z.int().nonnegative())
      .nullish()
      .describe('Layers without a bottleneck, counted from 0 (AdapterDrop, arXiv 2010.11918).'),
    is_parallel: flag().describe('The bottleneck reads what the half-block is added to, not what it gives.'),
    scaling: z
      .union([z.number(), z.enum(['learned', 'channel'])])
      .nullish()
      .describe('Factor of what the bottleneck gives; learned: one number, channel: one a channel.'),
    init_weights: z
      .enum(['bert', 'mam_adapter', 'houlsby'])
      .nullish()
      .describe(
        'bert: normal, deviation 0.02; mam_adapter: as LoRA, nothing changes at first; houlsby: normal, 0.01, cut at 0.02.',
      ),
    init_weights_seed: z
      .int()
      .nonnegative()
      .nullish()
      .describe('Draw with this seed, whatever the seed of the run is.'),
    dropout: z
      .number()
      .min(0)
      .lt(1)
      .nullish()
      .describe('Share of the bottleneck’s output that is dropped in training.'),
    stochastic_depth: z
      .number()
      .min(0)
      .lt(1)
      .nullish()
      .describe('Share of rows that go past a bottleneck in training (arXiv 1603.09382).'),
    use_gating: flag().describe(
      'A trained gate from 0 to 1 a row (UniPELT); it looks at the whole row, so it is for rows that are there at once.',
    ),
    original_ln_before: flag().describe('The sum, and the base’s norm where one follows, come before the bottleneck.'),
    original_ln_after: flag().describe('The sum, and the base’s norm where one follows, come after it.'),
    ln_before: flag().describe('A norm of its own before the bottleneck.'),
    ln_after: flag().describe('A norm of its own after it.'),
    residual_before_ln: z
      .union([z.boolean(), z.literal('post_add')])
      .nullish()
      .describe('What is added to the bottleneck’s output: its input before or after sum and norm; post_add: between.'),
    adapter_residual_before_ln: flag().describe('With ln_after: that sum comes before the norm.'),
    inv_adapter: z
      .literal('nice')
      .nullish()
      .describe('An invertible block behind the embeddings (arXiv 1410.8516), for the languages of MAD-X.'),
    inverse_before_head: z
      .boolean()
      .default(false)
      .describe(
        'Undo that block before the head of a language model (MAD-X). AdapterHub does so in its own model classes, and not in those of transformers.',
      ),
    inv_adapter_reduction_factor: factor.nullish().describe('Bottleneck of its parts.'),
    cross_adapter: z.literal(false).nullish().describe('AdapterHub: after cross-attention. No family here has it.'),
    phm_layer: flag().describe('Projections are sums of Kronecker products (Compacter, arXiv 2106.04647).'),
    phm_dim: z.int().positive().nullish().describe('n: how many products; divides both widths.'),
    phm_rank: z.int().positive().nullish().describe('Rank of the larger factor.'),
    phm_bias: flag().describe('Projections have biases.'),
    shared_phm_rule: flag().describe('One set of small factors [n, n, n] for all layers.'),
    factorized_phm_rule: flag().describe('The small factors are of rank 1.'),
    learn_phm: z.literal(true).nullish().describe('AdapterHub: whether the small factors are trained. Here they are.'),
    factorized_phm_W: flag().describe('The large factors are of rank phm_rank.'),
    shared_W_phm: flag().describe('One set of large factors for all layers.'),
    phm_c_init: z.enum(['normal', 'uniform']).nullish().describe('How the small factors are drawn.'),
    phm_init_range: z.number().positive().nullish().describe('Deviation of the small factors at first.'),
    hypercomplex_nonlinearity: z
      .string()
      .nullish()
      .describe('AdapterHub: ignored there; the large factors are drawn as Glorot’s normal.'),
  })
  .describe(
    'Small bottlenecks with a residual connection after attention or MLP (arXiv 1902.00751, 2005.00247, 2110.04366). Fields and defaults are AdapterHub’s.',
  );

export type BottleneckConfig = z.infer<typeof bottleneckConfig>;

/** Every field with its value. @throws GraftError 'usage' for fields that contradict each other */
export function completeBottleneck({ config, inverse_before_head, ...given }: BottleneckConfig): CompleteBottleneck {
  const chosen = Object.entries(given).filter(([, value]) => value !== null && value !== undefined);
  const c = { ...seqBn, ...named[config], ...Object.fromEntries(chosen) } as CompleteBottleneck;
  const wrong = (problem: string, place: string, hint: string) => new GraftError('usage', problem, { place, hint });
  if (!c.mh_adapter && !c.output_adapter) {
    throw wrong('neither attention nor MLP gets a bottleneck', 'output_adapter', 'Set mh_adapter or output_adapter');
  }
  if (c.phm_layer && c.init_weights !== 'bert') {
    throw wrong(`init_weights: ${c.init_weights} has no meaning with phm_layer`, 'init_weights', 'Leave it out');
  }
  if (inverse_before_head && !c.inv_adapter) {
    throw wrong('there is no invertible block to undo before the head', 'inverse_before_head', 'Set inv_adapter: nice');
  }
  if (c.inv_adapter && c.inv_adapter_reduction_factor === null) return { ...c, inv_adapter_reduction_factor: 2 };
  return c;
}

/** Width of the bottleneck in a layer. */
export function innerWidth({ reduction_factor: by }: CompleteBottleneck, width: number, layer: number): number {
  const value = typeof by === 'number' ? by : (by[layer] ?? by.default);
  if (value === undefined) {
    throw new GraftError('usage', `reduction_factor says nothing of layer ${layer}`, {
      place: 'reduction_factor',
      hint: "Give a 'default' beside the layers",
    });
  }
  return Math.max(1, floorDivide(width, value));
}

/** a // b as Python has it, which for some factors is one less than the floor of a / b: 768 // 12.8 is 59. */
export function floorDivide(a: number, b: number): number {
  return Math.round((a - (a % b)) / b);
}
