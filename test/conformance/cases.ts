/** What the conformance tests expect of each method, as data: a new method is one entry here. */
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { saveAdapter } from '../../src/adapters/index.ts';
import { type Adapter, methods } from '../../src/methods/index.ts';
import { Generator, noGrad, ops, scope } from '../../src/tensor/index.ts';
import { temporary } from '../support.ts';
import type { Base } from './bases.ts';

type Fields = Readonly<Record<string, unknown>>;

/** A config, or a function that makes one for a base, with saved adapters of that base. */
export type ConfigCase = Fields | ((base: Base) => Fields);

export interface MethodCases {
  /** Configs to test, by a name of ours; fields that are left out have their defaults. */
  readonly configs: Readonly<Record<string, ConfigCase>>;
  /** Whether attaching leaves every logit unchanged: bit for bit (true), or up to rounding ('nearly'). */
  startsUnchanged(config: string): boolean | 'nearly';
  /** Largest relative difference between merged and attached logits; undefined: it cannot be merged. */
  readonly mergeTolerance: number | undefined;
  /** True: it trains the base itself, is saved as a model, and is neither undone by `detach` nor attached twice. */
  readonly trainsBase: boolean;
  /** Learning rate at which a few steps on one batch lower its loss. */
  readonly lr: number;
  /** The error on this base with this config; undefined: it can be attached. */
  refuses(base: Base, config: string): RegExp | undefined;
  /** Configs whose file holds another adapter that computes the same (PiSSA, OLoRA). */
  readonly savedAsOther?: RegExp;
  /** Configs whose initial values do not depend on the seed. */
  readonly seedIndependent?: RegExp;
  /** Configs that cannot be merged on this base, although `mergeTolerance` is set. */
  unmergeable?(base: Base, config: string): boolean;
  /** Configs that every base here refuses, with the error. */
  readonly invalid: readonly { config: ConfigCase; why: RegExp }[];
  /** Parameters that do not change the loss, so their gradient is zero. */
  readonly withoutGradient?: RegExp;
  /** How often methods.test.ts has to see a property hold, not apply, and a config refused: for nine properties on B bases. */
  readonly counts: { readonly held: number; readonly notApplicable: number; readonly refused: number };
}

/** The number of bases in bases.ts. */
const B = 11;

const savedDir = temporary();
process.on('exit', () => savedDir[Symbol.dispose]());

/** Saves bottleneck adapters with these configs for a base, and returns their directories. */
export function savedBottlenecks(base: Base, configs: readonly Fields[]): string[] {
  return configs.map((config) => {
    const dir = join(
      savedDir.path,
      createHash('sha256')
        .update(`${base.name} ${JSON.stringify(config)}`)
        .digest('hex'),
    );
    if (existsSync(dir)) return dir;
    using _ = scope();
    using model = base.load();
    using adapter = methods.bottleneck.attach(model, methods.bottleneck.config.parse(config), 5);
    perturb(adapter, 6);
    saveAdapter(model, adapter, dir, { base: 'b' });
    return dir;
  });
}

/** What all methods of virtual tokens have in common. */
const virtual = {
  startsUnchanged: () => false,
  mergeTolerance: undefined,
  trainsBase: false,
  lr: 5e-2,
  refuses: () => undefined,
} as const;

/** The methods that train; what stands beside them is tested in qat.test.ts and layerwise.test.ts. */
export const methodCases: Readonly<Record<Exclude<keyof typeof methods, 'qat' | 'layerwise'>, MethodCases>> = {
  lora: {
    configs: {
      defaults: {},
      'every linear layer': { target_modules: 'all-linear', r: 4, lora_alpha: 16 },
      'rank-stabilised, normal': { target_modules: 'all-linear', use_rslora: true, init_lora_weights: 'gaussian' },
      'random start': { target_modules: 'all-linear', init_lora_weights: false, r: 3 },
      dropout: { target_modules: 'all-linear', lora_dropout: 0.3 },
      patterns: {
        target_modules: ['q_proj', 'down_proj', 'o_proj'],
        layers_to_transform: [1],
        rank_pattern: { o_proj: 2 },
        alpha_pattern: { 'layers.1.mlp.down_proj': 3 },
      },
      'regular expression': { target_modules: '.*layers\\.0\\.mlp\\.(up|gate)_proj', exclude_modules: ['gate_proj'] },
      'all biases': { target_modules: ['q_proj', 'o_proj'], bias: 'all' },
      'biases of targets': { target_modules: ['k_proj', 'v_proj'], bias: 'lora_only' },
      'tables and head': { target_modules: ['embed_tokens', 'lm_head', 'up_proj'] },
      'head and norms saved': { target_modules: ['v_proj'], modules_to_save: ['lm_head', 'norm'] },
      'embeddings saved': { target_modules: ['down_proj'], modules_to_save: ['embed_tokens'], bias: 'lora_only' },
      DoRA: { target_modules: 'all-linear', use_dora: true, r: 4 },
      'DoRA of a table, dropout': { target_modules: ['embed_tokens', 'q_proj'], use_dora: true, lora_dropout: 0.2 },
      PiSSA: { target_modules: ['q_proj', 'down_proj'], init_lora_weights: 'pissa', r: 4 },
      'PiSSA beside a table': { target_modules: ['embed_tokens', 'q_proj'], init_lora_weights: 'pissa', r: 4 },
      'PiSSA, sketched': { target_modules: ['k_proj'], init_lora_weights: 'pissa_niter_4', use_rslora: true, r: 3 },
      OLoRA: { target_modules: 'all-linear', init_lora_weights: 'olora', r: 4, rank_pattern: { o_proj: 2 } },
      LoftQ: { target_modules: 'all-linear', init_lora_weights: 'loftq', r: 4 },
      'LoftQ, several steps': {
        target_modules: 'all-linear',
        init_lora_weights: 'loftq',
        loftq_config: { loftq_iter: 3 },
      },
      'biases of updates': { target_modules: ['q_proj', 'k_proj', 'v_proj'], lora_alpha: 32, lora_bias: true },
      'tied update': { target_modules: ['embed_tokens', 'v_proj'], ensure_weight_tying: true },
      'tied copy': { target_modules: ['v_proj'], modules_to_save: ['embed_tokens'], ensure_weight_tying: true },
      'rows of tokens': { trainable_token_indices: Array.from({ length: 48 }, (_, i) => 2 * i + 1) },
    },
    startsUnchanged: (config) => (/PiSSA|OLoRA|DoRA/.test(config) ? 'nearly' : !/random start|LoftQ/.test(config)),
    mergeTolerance: 1e-5,
    trainsBase: false,
    lr: 1e-2,
    refuses({ name, packed }, config) {
      if (/PiSSA|OLoRA/.test(config)) return packed ? /is quantised, and \w+ needs dense weights/ : undefined;
      if (/LoftQ/.test(config)) return / nf4$/.test(name) ? undefined : /is not quantised so|has no quantisation error/;
      return undefined;
    },
    savedAsOther: /PiSSA|OLoRA/,
    seedIndependent: /PiSSA$|OLoRA|LoftQ/,
    unmergeable: ({ name }, config) => config === 'biases of updates' && !/qwen2|llama-linear/.test(name),
    invalid: [
      { config: { use_dora: true, init_lora_weights: 'pissa' }, why: /exclude one another/ },
      { config: { lora_bias: true, use_dora: true }, why: /lora_bias works with plain LoRA only/ },
      { config: { lora_bias: true, target_modules: ['embed_tokens'] }, why: /lora_bias does not support embeddings/ },
      { config: { init_lora_weights: 'olora', r: 1000 }, why: /r is 1000, and .* has rank \d+/ },
      { config: { init_lora_weights: 'loftq' }, why: /is not quantised so/ },
      { config: { trainable_token_indices: [3, 100000] }, why: /token 100000 is outside/ },
      { config: { trainable_token_indices: { wte: [3] } }, why: /'wte', which is neither an embedding/ },
      { config: { target_modules: ['q_porj'] }, why: /selects no module: .* matches no module/ },
      { config: { target_modules: ['mlp'] }, why: /neither a linear layer nor an embedding/ },
      { config: { modules_to_save: ['lm_head', 'hed'] }, why: /names 'hed', which matches no module/ },
      {
        config: { target_modules: ['v_proj'], modules_to_save: ['embed_tokens'], trainable_token_indices: [1] },
        why: /modules_to_save trains all rows of '\S*embed_tokens', those of single tokens too/,
      },
    ],
    // Of 24 configs, PiSSA and OLoRA run on the 6 dense bases, and LoftQ on the nf4 one. Biases of updates cannot be merged on 7 bases.
    counts: {
      held: (18 * B + 4 * 6 + 2) * 9 - 7 - 2 * 6 - 2,
      notApplicable: 7 + 2 * 6 + 2,
      refused: 11 + 4 * 5 + 2 * 10,
    },
  },
  adalora: {
    configs: {
      defaults: { init_r: 4, target_r: 2 },
      'random start, dropout': {
        init_r: 3,
        init_lora_weights: false,
        lora_alpha: 0.5,
        lora_dropout: 0.2,
        target_modules: ['q_proj', 'down_proj'],
        bias: 'lora_only',
      },
    },
    startsUnchanged: (config) => config === 'defaults',
    mergeTolerance: 1e-5,
    trainsBase: false,
    lr: 5e-2,
    refuses: () => undefined,
    invalid: [
      { config: { target_modules: ['embed_tokens'] }, why: /adalora supports linear layers only/ },
      { config: { tinit: 6, tfinal: 4, total_step: 10 }, why: /leave no step to prune ranks: the run has 10/ },
    ],
    counts: { held: 2 * B * 9, notApplicable: 0, refused: 2 },
  },
  ia3: {
    configs: {
      defaults: {},
      'random start': {
        target_modules: ['q_proj', 'up_proj', 'down_proj'],
        feedforward_modules: ['down_proj'],
        init_ia3_weights: false,
        modules_to_save: ['norm'],
      },
    },
    startsUnchanged: (config) => config === 'defaults',
    mergeTolerance: 1e-5,
    trainsBase: false,
    lr: 1e-1,
    refuses: () => undefined,
    seedIndependent: /defaults/,
    invalid: [
      { config: { target_modules: ['embed_tokens', 'k_proj'] }, why: /ia3 supports linear layers only/ },
      {
        config: { target_modules: ['k_proj'], feedforward_modules: ['up_proj'] },
        why: /which is not in target_modules/,
      },
    ],
    counts: { held: 2 * B * 9 - B, notApplicable: B, refused: 2 },
  },
  bottleneck: {
    configs: {
      defaults: {},
      Houlsby: { config: 'double_seq_bn', reduction_factor: 4 },
      parallel: { config: 'par_bn' },
      'scaled parallel, gated': { config: 'scaled_par_bn', reduction_factor: 4, use_gating: true },
      'adapter_plus, dropped rows': { config: 'adapter_plus', reduction_factor: 8 },
      Compacter: { config: 'compacter', reduction_factor: 4, phm_dim: 2, phm_init_range: 0.3 },
      'invertible, undone': { config: 'seq_bn_inv', reduction_factor: 4, inverse_before_head: true },
      'norms, dropout, by layer': {
        reduction_factor: { 0: 2, default: 8 },
        ln_before: true,
        ln_after: true,
        scaling: 'learned',
        dropout: 0.2,
      },
      'a layer left out': { leave_out: [0], non_linearity: 'leakyrelu', reduction_factor: 4 },
    },
    startsUnchanged: (config) => config === 'parallel' || config === 'scaled parallel, gated',
    mergeTolerance: undefined,
    trainsBase: false,
    lr: 1e-2,
    refuses: () => undefined,
    invalid: [
      { config: { output_adapter: false }, why: /neither attention nor MLP has a bottleneck/ },
      { config: { reduction_factor: { 0: 2 } }, why: /has no value for layer 1/ },
      { config: { config: 'compacter', phm_dim: 3 }, why: /phm_dim 3 does not divide the width 32/ },
      { config: { config: 'compacter', init_weights: 'mam_adapter' }, why: /phm_layer does not support init_weights/ },
      { config: { inverse_before_head: true }, why: /needs an invertible adapter/ },
    ],
    counts: { held: 9 * B * 8, notApplicable: 9 * B, refused: 5 },
  },
  fusion: {
    configs: {
      dynamic: (base) => ({ adapters: savedBottlenecks(base, [{ reduction_factor: 4 }, { reduction_factor: 8 }]) }),
      'static, adapters trained': (base) => ({
        adapters: savedBottlenecks(base, [
          { config: 'double_seq_bn' },
          { config: 'double_seq_bn', reduction_factor: 4 },
        ]),
        config: 'static',
        train_adapters: true,
        dropout_prob: 0.1,
      }),
    },
    startsUnchanged: () => false,
    mergeTolerance: undefined,
    trainsBase: false,
    lr: 1e-2,
    refuses: () => undefined,
    invalid: [
      { config: { adapters: ['nowhere'] }, why: /this is not an adapter/ },
      {
        config: (base) => ({ adapters: savedBottlenecks(base, [{ config: 'par_bn' }]) }),
        why: /parallel adapters cannot/,
      },
      { config: (base) => ({ adapters: savedBottlenecks(base, [{}, { leave_out: [1] }]) }), why: /at other places/ },
      {
        config: (base) => ({ adapters: savedBottlenecks(base, [{}]), config: 'average', weights: [1, 2] }),
        why: /2 weights for 1/,
      },
    ],
    // Adding a constant to every score does not change a softmax.
    withoutGradient: /\.key\.bias$/,
    counts: { held: 2 * B * 8, notApplicable: 2 * B, refused: 4 },
  },
  full: {
    configs: { defaults: {} },
    startsUnchanged: () => true,
    mergeTolerance: undefined,
    trainsBase: true,
    lr: 1e-3,
    refuses: ({ packed }) => (packed ? /is quantised, and full fine-tuning needs dense weights/ : undefined),
    invalid: [],
    counts: { held: 6 * 5, notApplicable: 6 * 4, refused: 5 },
  },
  prompt: {
    configs: {
      'tokens of the vocabulary': { num_virtual_tokens: 4 },
      'random start': { num_virtual_tokens: 3, prompt_tuning_init: 'RANDOM' },
    },
    ...virtual,
    invalid: [
      { config: { num_virtual_tokens: 1e6 }, why: /1000000 virtual tokens leave no room for rows/ },
      { config: { num_virtual_tokens: 4, prompt_tuning_init: 'TEXT' }, why: /prompt_tuning_init_text is empty/ },
      {
        config: { num_virtual_tokens: 4, prompt_tuning_init: 'TEXT', prompt_tuning_init_text: 'Hi' },
        why: /the model has no tokenizer/,
      },
    ],
    counts: { held: 2 * B * 8, notApplicable: 2 * B, refused: 3 },
  },
  'multitask-prompt': {
    configs: { 'one task': { num_virtual_tokens: 4, num_ranks: 2 } },
    ...virtual,
    invalid: [
      { config: { num_virtual_tokens: 1e6 }, why: /leave no room/ },
      {
        config: { num_virtual_tokens: 4, prompt_tuning_init: 'ONLY_SOURCE_SHARED' },
        why: /ONLY_SOURCE_SHARED needs a saved adapter/,
      },
    ],
    counts: { held: B * 8, notApplicable: B, refused: 2 },
  },
  prefix: {
    configs: {
      'random start': { num_virtual_tokens: 5 },
      'projected, zero start': { num_virtual_tokens: 2, prefix_projection: true, init_weights: 'zero' },
      projected: { num_virtual_tokens: 3, prefix_projection: true, encoder_hidden_size: 12 },
    },
    ...virtual,
    invalid: [
      { config: { num_virtual_tokens: 1e6, prefix_projection: true }, why: /leave no room/ },
      { config: { num_virtual_tokens: 4, init_text: 'Hi' }, why: /the model has no tokenizer/ },
      {
        config: { num_virtual_tokens: 4, init_text: 'Hi', prefix_projection: true },
        why: /init_text and prefix_projection exclude one another/,
      },
    ],
    counts: { held: 3 * B * 8, notApplicable: 3 * B, refused: 3 },
  },
  'p-tuning': {
    configs: {
      MLP: { num_virtual_tokens: 4, encoder_hidden_size: 12 },
      'LSTM, dropout': { num_virtual_tokens: 3, encoder_reparameterization_type: 'LSTM', encoder_dropout: 0.2 },
    },
    ...virtual,
    invalid: [{ config: { num_virtual_tokens: 1e6 }, why: /leave no room/ }],
    counts: { held: 2 * B * 8, notApplicable: 2 * B, refused: 1 },
  },
};

/** Adds noise to every parameter, as if the adapter had been trained. */
export function perturb({ parameters }: Adapter, seed: number): void {
  using _ = scope();
  using generator = new Generator(seed);
  noGrad(() => {
    for (const p of parameters.values()) ops.add_(p, ops.mulScalar(ops.randn(p.shape, { generator }), 0.05));
  });
}
