/**
 * What the suite runs over, as data: a new method or a new base is one entry here, beside its line in the registry.
 */
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { saveAdapter } from '../../src/adapters/index.ts';
import { pack } from '../../src/data/index.ts';
import { writeSafetensors } from '../../src/io/index.ts';
import { type Adapter, methods } from '../../src/methods/index.ts';
import { loadModel, type Quantize } from '../../src/models/index.ts';
import type { Model } from '../../src/nn/index.ts';
import { Generator, noGrad, ops, scope } from '../../src/tensor/index.ts';
import type { MicroBatch } from '../../src/train/index.ts';
import { golden, temporary } from '../support.ts';

/** A model to put methods on. */
export interface Base {
  readonly name: string;
  /** Its linear layers and tables are held in blocks. */
  readonly packed: boolean;
  load(): Model;
  /** Rows that it can learn. */
  batch(model: Model, seed?: number): MicroBatch;
}

/** Three rows of random ids; the first half of each is only read. */
function tokens(model: Model, seed = 0): MicroBatch {
  let at = 0;
  const rows = [13, 2, 7].map((length) => {
    const next = () => ((at + 1) * 7919 + seed * 104729 + at * at++) % model.vocabSize;
    const ids = Int32Array.from({ length }, next);
    return { ids, labels: ids.map((id, i) => (i < length / 2 ? -100 : id)), place: 'test' };
  });
  return pack(rows);
}

const decoder = (file: string, quantize: Quantize = 'none'): Base => ({
  name: quantize === 'none' ? file : `${file} ${quantize}`,
  packed: quantize !== 'none',
  load: () => loadModel(golden(...file.split('/')), { quantize }),
  batch: tokens,
});

/** A small Llama whose every width is a multiple of 64, with random weights: nf4 needs such widths. */
const wide: Base = {
  name: 'a wide llama nf4',
  packed: true,
  batch: tokens,
  load() {
    using _ = scope();
    using generator = new Generator(17);
    const dir = join(kept.path, 'wide');
    if (existsSync(dir)) return loadModel(dir, { quantize: 'nf4' });
    mkdirSync(dir);
    const config = {
      model_type: 'llama',
      vocab_size: 96,
      hidden_size: 64,
      intermediate_size: 128,
      num_hidden_layers: 2,
      num_attention_heads: 4,
      num_key_value_heads: 4,
      tie_word_embeddings: false,
    };
    const shapes: Record<string, number[]> = {
      'model.embed_tokens.weight': [96, 64],
      'model.norm.weight': [64],
      'lm_head.weight': [96, 64],
    };
    for (const layer of [0, 1]) {
      const at = `model.layers.${layer}`;
      for (const name of ['q', 'k', 'v', 'o']) shapes[`${at}.self_attn.${name}_proj.weight`] = [64, 64];
      for (const name of ['gate', 'up']) shapes[`${at}.mlp.${name}_proj.weight`] = [128, 64];
      shapes[`${at}.mlp.down_proj.weight`] = [64, 128];
      for (const name of ['input', 'post_attention']) shapes[`${at}.${name}_layernorm.weight`] = [64];
    }
    writeFileSync(join(dir, 'config.json'), JSON.stringify(config));
    writeSafetensors(
      join(dir, 'model.safetensors'),
      Object.entries(shapes).map(([name, shape]) => {
        const values = ops.mulScalar(ops.randn(shape, { generator }), 0.2);
        return { name, dtype: 'float32' as const, shape, bytes: () => values.bytes() };
      }),
    );
    return loadModel(dir, { quantize: 'nf4' });
  },
};

export const bases: readonly Base[] = [
  ...['llama2', 'llama3', 'llama-linear', 'mistral', 'qwen2', 'qwen3'].map((name) => decoder(`models/${name}`)),
  ...['llama', 'qwen2'].flatMap((name) => [decoder(`gguf/${name}.gguf`, 'keep'), decoder(`gguf/${name}.gguf`, 'int8')]),
  wide,
];

/** Bases that cannot be held so, and why. */
export const refusedBases: readonly { base: Base; why: RegExp }[] = [
  { base: decoder('models/llama2', 'int8'), why: /down_proj\.weight is 44 wide, and int8 needs a multiple of 32/ },
  { base: decoder('models/qwen2', 'int8'), why: /embed_tokens\.weight is 40 wide, and int8 needs a multiple of 32/ },
  { base: decoder('models/llama3', 'nf4'), why: /embed_tokens\.weight is 32 wide, and nf4 needs a multiple of 64/ },
];

type Fields = Readonly<Record<string, unknown>>;

/** A configuration, or what makes one for a base (with adapters that fit it). */
export type Given = Fields | ((base: Base) => Fields);

export interface MethodCases {
  /** Configurations to try, by a name of ours; fields that are not given have their defaults. */
  readonly configs: Readonly<Record<string, Given>>;
  /** Whether attaching alone leaves every logit as it was: to the bit, or nearly. */
  freshIsSilent(config: string): boolean | 'nearly';
  /** Largest relative difference between merged and attached logits; undefined: it cannot be merged. */
  readonly mergeTolerance: number | undefined;
  /** Whether it trains the base itself: then it is saved as a model, and neither undone nor attached twice. */
  readonly trainsBase: boolean;
  /** Learning rate at which a few steps on one batch must help. */
  readonly lr: number;
  /** Why it cannot go on this base with this configuration; undefined: it can. */
  refuses(base: Base, config: string): RegExp | undefined;
  /** Configurations whose file is another adapter that computes the same (parted bases). */
  readonly savedAsOther?: RegExp;
  /** Configurations that draw nothing by chance. */
  readonly drawsNothing?: RegExp;
  /** Configurations that cannot be merged on this base, whatever `mergeTolerance` says. */
  unmergeable?(base: Base, config: string): boolean;
  /** Configurations that fit no base here, and why. */
  readonly wrong: readonly { config: Given; why: RegExp }[];
  /** Parameters that no loss depends on. */
  readonly idle?: RegExp;
}

const kept = temporary();
process.on('exit', () => kept[Symbol.dispose]());

/** Saves adapters of these configurations that fit a base; returns their directories. */
export function savedOn(base: Base, configs: readonly Fields[]): string[] {
  return configs.map((config) => {
    const dir = join(
      kept.path,
      createHash('sha256')
        .update(`${base.name} ${JSON.stringify(config)}`)
        .digest('hex'),
    );
    if (existsSync(dir)) return dir;
    using _ = scope();
    using model = base.load();
    using adapter = methods.bottleneck.attach(model, methods.bottleneck.config.parse(config), 5);
    disturb(adapter, 6);
    saveAdapter(model, adapter, dir, { base: 'b' });
    return dir;
  });
}

/** What all methods of virtual tokens promise. */
const virtual = {
  freshIsSilent: () => false,
  mergeTolerance: undefined,
  trainsBase: false,
  lr: 5e-2,
  refuses: () => undefined,
} as const;

export const methodCases: Readonly<Record<keyof typeof methods, MethodCases>> = {
  lora: {
    configs: {
      defaults: {},
      'every linear layer': { target_modules: 'all-linear', r: 4, lora_alpha: 16 },
      'rank-stabilised, normal': { target_modules: 'all-linear', use_rslora: true, init_lora_weights: 'gaussian' },
      'random start': { target_modules: 'all-linear', init_lora_weights: false, r: 3 },
      'drop-out': { target_modules: 'all-linear', lora_dropout: 0.3 },
      patterns: {
        target_modules: ['q_proj', 'down_proj', 'o_proj'],
        layers_to_transform: [1],
        rank_pattern: { o_proj: 2 },
        alpha_pattern: { 'layers.1.mlp.down_proj': 3 },
      },
      'regular expression': { target_modules: '.*layers\\.0\\.mlp\\.(up|gate)_proj', exclude_modules: ['gate_proj'] },
      'all biases': { target_modules: ['q_proj', 'o_proj'], bias: 'all' },
      'own biases': { target_modules: ['k_proj', 'v_proj'], bias: 'lora_only' },
      'tables and head': { target_modules: ['embed_tokens', 'lm_head', 'up_proj'] },
      'head and norms saved': { target_modules: ['v_proj'], modules_to_save: ['lm_head', 'norm'] },
      'embeddings saved': { target_modules: ['down_proj'], modules_to_save: ['embed_tokens'], bias: 'lora_only' },
      DoRA: { target_modules: 'all-linear', use_dora: true, r: 4 },
      'DoRA of a table, drop-out': { target_modules: ['embed_tokens', 'q_proj'], use_dora: true, lora_dropout: 0.2 },
      PiSSA: { target_modules: ['q_proj', 'down_proj'], init_lora_weights: 'pissa', r: 4 },
      'PiSSA beside a table': { target_modules: ['embed_tokens', 'q_proj'], init_lora_weights: 'pissa', r: 4 },
      'PiSSA, sketched': { target_modules: ['k_proj'], init_lora_weights: 'pissa_niter_4', use_rslora: true, r: 3 },
      OLoRA: { target_modules: 'all-linear', init_lora_weights: 'olora', r: 4, rank_pattern: { o_proj: 2 } },
      LoftQ: { target_modules: 'all-linear', init_lora_weights: 'loftq', r: 4 },
      'LoftQ, packed anew': {
        target_modules: 'all-linear',
        init_lora_weights: 'loftq',
        loftq_config: { loftq_iter: 3 },
      },
      'biases of updates': { target_modules: ['q_proj', 'k_proj', 'v_proj'], lora_alpha: 32, lora_bias: true },
      'ends tied': { target_modules: ['embed_tokens', 'v_proj'], ensure_weight_tying: true },
      'saved ends tied': { target_modules: ['v_proj'], modules_to_save: ['embed_tokens'], ensure_weight_tying: true },
      'rows of tokens': { trainable_token_indices: Array.from({ length: 48 }, (_, i) => 2 * i + 1) },
    },
    freshIsSilent: (config) => (/PiSSA|OLoRA|DoRA/.test(config) ? 'nearly' : !/random start|LoftQ/.test(config)),
    mergeTolerance: 1e-5,
    trainsBase: false,
    lr: 1e-2,
    refuses({ name, packed }, config) {
      if (/PiSSA|OLoRA/.test(config)) return packed ? /is quantised, and \w+ needs dense weights/ : undefined;
      if (/LoftQ/.test(config)) return / nf4$/.test(name) ? undefined : /is not quantised so|has no quantisation error/;
      return undefined;
    },
    savedAsOther: /PiSSA|OLoRA/,
    drawsNothing: /PiSSA$|OLoRA|LoftQ/,
    unmergeable: ({ name }, config) => config === 'biases of updates' && !/qwen2|llama-linear/.test(name),
    wrong: [
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
    ],
  },
  adalora: {
    configs: {
      defaults: { init_r: 4, target_r: 2 },
      'random start, drop-out': {
        init_r: 3,
        init_lora_weights: false,
        lora_alpha: 0.5,
        lora_dropout: 0.2,
        target_modules: ['q_proj', 'down_proj'],
        bias: 'lora_only',
      },
    },
    freshIsSilent: (config) => config === 'defaults',
    mergeTolerance: 1e-5,
    trainsBase: false,
    lr: 5e-2,
    refuses: () => undefined,
    wrong: [
      { config: { target_modules: ['embed_tokens'] }, why: /adalora supports linear layers only/ },
      { config: { tinit: 6, tfinal: 4, total_step: 10 }, why: /leave no step to prune ranks: the run has 10/ },
    ],
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
    freshIsSilent: (config) => config === 'defaults',
    mergeTolerance: 1e-5,
    trainsBase: false,
    lr: 1e-1,
    refuses: () => undefined,
    drawsNothing: /defaults/,
    wrong: [
      { config: { target_modules: ['embed_tokens', 'k_proj'] }, why: /ia3 supports linear layers only/ },
      {
        config: { target_modules: ['k_proj'], feedforward_modules: ['up_proj'] },
        why: /which is not in target_modules/,
      },
    ],
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
      'norms, drop-out, by layer': {
        reduction_factor: { 0: 2, default: 8 },
        ln_before: true,
        ln_after: true,
        scaling: 'learned',
        dropout: 0.2,
      },
      'a layer left out': { leave_out: [0], non_linearity: 'leakyrelu', reduction_factor: 4 },
    },
    freshIsSilent: (config) => config === 'parallel' || config === 'scaled parallel, gated',
    mergeTolerance: undefined,
    trainsBase: false,
    lr: 1e-2,
    refuses: () => undefined,
    wrong: [
      { config: { output_adapter: false }, why: /neither attention nor MLP has a bottleneck/ },
      { config: { reduction_factor: { 0: 2 } }, why: /has no value for layer 1/ },
      { config: { config: 'compacter', phm_dim: 3 }, why: /phm_dim 3 does not divide the width 32/ },
      { config: { config: 'compacter', init_weights: 'mam_adapter' }, why: /phm_layer does not support init_weights/ },
      { config: { inverse_before_head: true }, why: /needs an invertible adapter/ },
    ],
  },
  fusion: {
    configs: {
      dynamic: (base) => ({ adapters: savedOn(base, [{ reduction_factor: 4 }, { reduction_factor: 8 }]) }),
      'static, adapters trained': (base) => ({
        adapters: savedOn(base, [{ config: 'double_seq_bn' }, { config: 'double_seq_bn', reduction_factor: 4 }]),
        config: 'static',
        train_adapters: true,
        dropout_prob: 0.1,
      }),
    },
    freshIsSilent: () => false,
    mergeTolerance: undefined,
    trainsBase: false,
    lr: 1e-2,
    refuses: () => undefined,
    wrong: [
      { config: { adapters: ['nowhere'] }, why: /this is no adapter/ },
      { config: (base) => ({ adapters: savedOn(base, [{ config: 'par_bn' }]) }), why: /parallel adapters cannot/ },
      { config: (base) => ({ adapters: savedOn(base, [{}, { leave_out: [1] }]) }), why: /at other places/ },
      {
        config: (base) => ({ adapters: savedOn(base, [{}]), config: 'average', weights: [1, 2] }),
        why: /2 weights for 1/,
      },
    ],
    // Softmax does not see what is added to every score.
    idle: /\.key\.bias$/,
  },
  full: {
    configs: { defaults: {} },
    freshIsSilent: () => true,
    mergeTolerance: undefined,
    trainsBase: true,
    lr: 1e-3,
    refuses: ({ packed }) => (packed ? /is quantised, and full fine-tuning needs dense weights/ : undefined),
    wrong: [],
  },
  prompt: {
    configs: {
      'tokens of the vocabulary': { num_virtual_tokens: 4 },
      'random start': { num_virtual_tokens: 3, prompt_tuning_init: 'RANDOM' },
    },
    ...virtual,
    wrong: [
      { config: { num_virtual_tokens: 1e6 }, why: /1000000 virtual tokens leave no room for rows/ },
      { config: { num_virtual_tokens: 4, prompt_tuning_init: 'TEXT' }, why: /prompt_tuning_init_text is empty/ },
      {
        config: { num_virtual_tokens: 4, prompt_tuning_init: 'TEXT', prompt_tuning_init_text: 'Hi' },
        why: /the model has no tokenizer/,
      },
    ],
  },
  'multitask-prompt': {
    configs: { 'one task': { num_virtual_tokens: 4, num_ranks: 2 } },
    ...virtual,
    wrong: [
      { config: { num_virtual_tokens: 1e6 }, why: /leave no room/ },
      {
        config: { num_virtual_tokens: 4, prompt_tuning_init: 'ONLY_SOURCE_SHARED' },
        why: /ONLY_SOURCE_SHARED needs a saved adapter/,
      },
    ],
  },
  prefix: {
    configs: {
      'random start': { num_virtual_tokens: 5 },
      'projected, zero start': { num_virtual_tokens: 2, prefix_projection: true, init_weights: 'zero' },
      projected: { num_virtual_tokens: 3, prefix_projection: true, encoder_hidden_size: 12 },
    },
    ...virtual,
    wrong: [
      { config: { num_virtual_tokens: 1e6, prefix_projection: true }, why: /leave no room/ },
      { config: { num_virtual_tokens: 4, init_text: 'Hi' }, why: /the model has no tokenizer/ },
      {
        config: { num_virtual_tokens: 4, init_text: 'Hi', prefix_projection: true },
        why: /init_text and prefix_projection exclude one another/,
      },
    ],
  },
  'p-tuning': {
    configs: {
      MLP: { num_virtual_tokens: 4, encoder_hidden_size: 12 },
      'LSTM, drop-out': { num_virtual_tokens: 3, encoder_reparameterization_type: 'LSTM', encoder_dropout: 0.2 },
    },
    ...virtual,
    wrong: [{ config: { num_virtual_tokens: 1e6 }, why: /leave no room/ }],
  },
};

/** Moves every parameter a little, so that an adapter is as after training. */
export function disturb({ parameters }: Adapter, seed: number): void {
  using _ = scope();
  using generator = new Generator(seed);
  noGrad(() => {
    for (const p of parameters.values()) ops.add_(p, ops.mulScalar(ops.randn(p.shape, { generator }), 0.05));
  });
}
