/** What quantisation-aware training refuses, and in which words; the model is then as it was, and no handle is left. */
import assert from 'node:assert/strict';
import test, { before } from 'node:test';
import { savedAdapters } from '../../src/adapters/index.ts';
import { GraftError } from '../../src/base/index.ts';
import { startEngine } from '../../src/engine/index.ts';
import { attachMethods, type MethodChoice } from '../../src/methods/index.ts';
import { loadModel, type Quantize } from '../../src/models/index.ts';
import { golden } from '../support.ts';
import { liveHandles } from './properties.ts';

before(() => startEngine());

const lora = { type: 'lora', r: 2, target_modules: 'all-linear' } as const;
const full = { type: 'full' } as const;
const qat = (fields: Readonly<Record<string, unknown>>): MethodChoice => ({ type: 'qat', ...fields });

interface Refusal {
  readonly model?: string;
  readonly quantize?: Quantize;
  readonly method?: readonly MethodChoice[];
  readonly message: RegExp;
  readonly hint: RegExp;
}

/** A model whose layers are 32 and 48 wide, with embeddings and head apart; others are named. */
const refusals: Readonly<Record<string, Refusal>> = {
  'groups of a format that has its own': {
    method: [lora, qat({ weight: 'q8_0', group_size: 32 })],
    message: /q8_0 has blocks of its own size, and group_size is for integers/,
    hint: /Leave out group_size/,
  },
  'asymmetric blocks': {
    method: [lora, qat({ weight: 'q4_0', symmetric: false })],
    message: /symmetric: false is for integers, not for q4_0/,
    hint: /Leave out symmetric/,
  },
  'a learned range of blocks': {
    method: [lora, qat({ weight: 'q4_0', learned_range: true })],
    message: /learned_range needs symmetric integers over the merged weight/,
    hint: /int2 to int8/,
  },
  'a learned range with zero points': {
    method: [lora, qat({ weight: 'int4', group_size: 16, symmetric: false, learned_range: true })],
    message: /learned_range needs symmetric integers/,
    hint: /leave out learned_range/,
  },
  'a learned range of a frozen base': {
    method: [lora, qat({ weight: 'int4', group_size: 16, over: 'base', learned_range: true })],
    message: /learned_range needs symmetric integers over the merged weight/,
    hint: /leave out learned_range/,
  },
  'a group that divides some widths only': {
    method: [lora, qat({ weight: 'int4', group_size: 32 })],
    message:
      /a group_size of 32 does not divide the width of model\.layers\.0\.mlp\.down_proj \(48 wide\), model\.layers\.1\.mlp\.down_proj \(48 wide\)/,
    hint: /Choose group_size: 16, or keep these layers dense/,
  },
  'a group that divides none': {
    method: [lora, qat({ weight: 'int4', group_size: 7 })],
    message: /a group_size of 7 does not divide the width of \S+ \(32 wide\), .* and 11 more/,
    hint: /Choose group_size: 8, or/,
  },
  'blocks that divide some widths only': {
    method: [lora, qat({ weight: 'q4_0' })],
    message: /q4_0 with its blocks of 32 does not divide the width of model\.layers\.0\.mlp\.down_proj \(48 wide\)/,
    hint: /integers \(int4, int8 …\), or keep these layers dense/,
  },
  'blocks of 256': {
    method: [lora, qat({ weight: 'q4_k', target_modules: ['q_proj'] })],
    message: /q4_k with its blocks of 256 does not divide the width of model\.layers\.0\.self_attn\.q_proj \(32 wide\)/,
    hint: /Choose .*q4_0.*q8_0/,
  },
  'inputs as llama.cpp rounds them, of integers': {
    method: [lora, qat({ weight: 'int4', group_size: 16, activation: 'q8' })],
    message: /activation: q8 is how llama\.cpp computes with GGUF’s formats, and int4 is not one of them/,
    hint: /activation: int8, or one of q4_0, .*q6_k/,
  },
  'inputs as llama.cpp rounds them, of a head in nf4': {
    method: [lora, qat({ weight: 'q8_0', head: 'nf4', activation: 'q8', exclude_modules: ['down_proj'] })],
    message: /and nf4 is not one of them/,
    hint: /activation: int8/,
  },
  'an embedding among the layers': {
    method: [lora, qat({ weight: 'int4', group_size: 16, target_modules: ['embed_tokens'] })],
    message: /target_modules selects 'model\.embed_tokens', an embedding/,
    hint: /in the field embedding/,
  },
  'modules that are not there': {
    method: [lora, qat({ weight: 'int4', group_size: 16, target_modules: ['query'] })],
    message: /target_modules/,
    hint: /./,
  },
  'a head where there is no vocabulary': {
    model: 'families/bert-seqcls',
    method: [lora, qat({ weight: 'int4', group_size: 'channel', head: 'int8' })],
    message: /head is for models with an output projection to a vocabulary/,
    hint: /Leave it out/,
  },
  'two formats of one table': {
    model: 'models/llama3',
    method: [lora, qat({ weight: 'int4', group_size: 4, embedding: 'int8', head: 'int4' })],
    message: /embeddings and head share one table, which cannot be int8 and int4/,
    hint: /the same format/,
  },
  'dropout of a merged weight': {
    method: [{ ...lora, lora_dropout: 0.1 }, qat({ weight: 'int4', group_size: 16 })],
    message: /a merged weight has no dropout, and the adapter on 'model\.layers\.0\.self_attn\.q_proj' has/,
    hint: /lora_dropout: 0, or use over: base/,
  },
  'a trained base': {
    method: [full, qat({ weight: 'int4', group_size: 16, over: 'base' })],
    message: /over: base rounds a frozen weight, and 'model\.layers\.0\.self_attn\.q_proj\S*' is trained/,
    hint: /Leave out over/,
  },
  'a base that PiSSA changes': {
    method: [{ ...lora, init_lora_weights: 'pissa' }, qat({ weight: 'int4', group_size: 16, over: 'base' })],
    message:
      /over: base rounds the base's own weight, and another adapter changes that of 'model\.layers\.0\.self_attn\.q_proj'/,
    hint: /init_lora_weights: PiSSA, OLoRA and LoftQ/,
  },
  'a packed base under a merged weight': {
    model: 'gguf/llama.gguf',
    quantize: 'int8',
    method: [lora, qat({ weight: 'q8_0' })],
    message: /the weight of '\S+' is packed, and what is rounded is its sum with an update/,
    hint: /quantize: none, or use over: base/,
  },
  'a base in another format under a merged weight': {
    model: 'gguf/llama.gguf',
    quantize: 'int8',
    method: [lora, qat({ weight: 'q4_0' })],
    message: /the weight of '\S+' is packed, and what is rounded is its sum with an update/,
    hint: /quantize: none, or use over: base/,
  },
  'a bias that a merged layer has no place for': {
    method: [{ ...lora, lora_bias: true }, qat({ weight: 'int4', group_size: 16 })],
    message: /'model\.layers\.0\.self_attn\.q_proj' has none to which lora_bias is added/,
    hint: /lora_bias: false, or use over: base/,
  },
  'a base in another format': {
    model: 'gguf/llama.gguf',
    quantize: 'int8',
    method: [lora, qat({ weight: 'q4_0', over: 'base' })],
    message: /the weight of '\S+' is held as q8_0, and cannot be rounded to q4_0 on top of that/,
    hint: /quantize: none, or round to q8_0/,
  },
  'a packed base, trained whole': {
    model: 'gguf/llama.gguf',
    quantize: 'int8',
    method: [full, qat({ weight: 'q8_0' })],
    message: /is quantised, and full fine-tuning needs dense weights/,
    hint: /quantize: none/,
  },
  'two roundings of one layer': {
    method: [
      lora,
      qat({ weight: 'int4', group_size: 16 }),
      qat({ weight: 'int8', group_size: 16, target_modules: ['q_proj'] }),
    ],
    message: /'model\.layers\.0\.self_attn\.q_proj' is rounded by another qat method/,
    hint: /its own target_modules/,
  },
  'two learned roundings of one layer': {
    method: [
      lora,
      qat({ weight: 'int4', group_size: 16 }),
      qat({ weight: 'int8', group_size: 16, target_modules: ['q_proj'], learned_range: true }),
    ],
    message: /'model\.layers\.0\.self_attn\.q_proj' is rounded by another qat method/,
    hint: /its own target_modules/,
  },
  'two roundings of one frozen layer': {
    method: [
      lora,
      qat({ weight: 'int4', group_size: 16, over: 'base' }),
      qat({ weight: 'int8', group_size: 16, over: 'base', target_modules: ['q_proj'] }),
    ],
    message: /'model\.layers\.0\.self_attn\.q_proj' is rounded by another qat method/,
    hint: /its own target_modules/,
  },
  'nothing that trains': {
    method: [qat({ weight: 'int4', group_size: 16 })],
    message: /qat trains no weights of its own/,
    hint: /Add a method that trains/,
  },
  'a saved adapter': {
    method: [lora, qat({ weight: 'int4', group_size: 16, adapter: 'somewhere' })],
    message: /qat is not an adapter: it has no fields adapter and train/,
    hint: /settings in the recipe/,
  },
  'a frozen qat': {
    method: [lora, qat({ weight: 'int4', group_size: 16, train: false })],
    message: /qat is not an adapter/,
    hint: /settings in the recipe/,
  },
  'a format that is not there': {
    method: [lora, qat({ weight: 'q2_k' })],
    message: /weight.*q4_0/s,
    hint: /^/,
  },
  'a group of nothing': {
    method: [lora, qat({ weight: 'int4', group_size: 0 })],
    message: /group_size/,
    hint: /^/,
  },
};

for (const [name, { model: base = 'models/mistral', quantize = 'none', method, message, hint }] of Object.entries(
  refusals,
)) {
  test(name, () => {
    using model = loadModel(golden(...base.split('/')), { quantize });
    const live = liveHandles();
    let thrown: unknown;
    try {
      attachMethods(model, method!, 1, savedAdapters(model)).detach();
    } catch (error) {
      thrown = error;
    }
    assert.ok(thrown instanceof GraftError, `refused, but: ${thrown}`);
    assert.match(thrown.message, message);
    assert.match(thrown.hint ?? '', hint);
    assert.ok(['usage', 'mismatch'].includes(thrown.kind), thrown.kind);
    assert.equal(liveHandles(), live, 'live handles');
    // What was refused is not on the model: another rounding of it stands.
    const fits: MethodChoice = qat({
      weight: quantize === 'none' ? 'int4' : 'q8_0',
      over: 'base',
      ...(quantize === 'none' && { group_size: 'channel' }),
    });
    attachMethods(model, [lora, fits], 1).detach();
    assert.equal(liveHandles(), live, 'live handles after another');
  });
}
