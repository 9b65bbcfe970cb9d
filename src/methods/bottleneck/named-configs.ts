/** AdapterHub's configs by name (adapters/configuration/adapter_config.py). */
import { activationNames } from '../../nn/index.ts';

/** The fields of `seq_bn` (Pfeiffer); the other named configs differ from it in a few. */
export const seqBn = {
  mh_adapter: false,
  output_adapter: true,
  reduction_factor: 16 as number | Record<string, number>,
  non_linearity: 'relu' as Activation,
  original_ln_before: true,
  original_ln_after: true,
  ln_before: false,
  ln_after: false,
  init_weights: 'bert' as 'bert' | 'mam_adapter' | 'houlsby',
  init_weights_seed: null as number | null,
  is_parallel: false,
  scaling: 1 as number | 'learned' | 'channel',
  use_gating: false,
  residual_before_ln: true as boolean | 'post_add',
  adapter_residual_before_ln: false,
  inv_adapter: null as 'nice' | null,
  inv_adapter_reduction_factor: null as number | null,
  cross_adapter: false as const,
  leave_out: [] as number[],
  dropout: 0,
  phm_layer: false,
  phm_dim: 4,
  factorized_phm_W: true,
  shared_W_phm: false,
  shared_phm_rule: true,
  factorized_phm_rule: false,
  phm_c_init: 'normal' as 'normal' | 'uniform',
  phm_init_range: 0.0001,
  learn_phm: true as const,
  hypercomplex_nonlinearity: 'glorot-uniform',
  phm_rank: 1,
  phm_bias: true,
  stochastic_depth: 0,
};

export type CompleteBottleneck = Readonly<typeof seqBn>;

export const activations = ['leakyrelu', ...activationNames] as const;
export type Activation = (typeof activations)[number];

const double = { mh_adapter: true, original_ln_before: false, non_linearity: 'swish' } as const;
const parallel = {
  original_ln_before: false,
  reduction_factor: 2,
  init_weights: 'mam_adapter',
  is_parallel: true,
  scaling: 4,
} as const;
const phm = { phm_layer: true, reduction_factor: 32, non_linearity: 'gelu' } as const;
const inverse = { inv_adapter: 'nice', inv_adapter_reduction_factor: 2 } as const;

/** AdapterHub's named configs, as their differences from `seq_bn`. */
export const namedBottlenecks = {
  seq_bn: {},
  double_seq_bn: double,
  seq_bn_inv: inverse,
  double_seq_bn_inv: { ...double, ...inverse },
  par_bn: parallel,
  scaled_par_bn: { ...parallel, scaling: 'learned' },
  compacter: { ...double, ...phm },
  'compacter++': phm,
  adapter_plus: {
    original_ln_after: false,
    residual_before_ln: false,
    stochastic_depth: 0.1,
    init_weights: 'houlsby',
    scaling: 'channel',
    reduction_factor: 96,
    non_linearity: 'gelu',
  },
} as const satisfies Record<string, Partial<CompleteBottleneck>>;

export type BottleneckName = keyof typeof namedBottlenecks;
