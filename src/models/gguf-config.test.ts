/** What a GGUF file's metadata becomes, where no file of test/golden/gguf has it. */
import assert from 'node:assert/strict';
import test from 'node:test';
import type { MetadataValue, WeightSource } from '../io/index.ts';
import { llama3Frequency, ropeOf } from '../nn/index.ts';
import { ggufLlamaConfig } from './gguf-config.ts';

type Numbers = Readonly<Record<string, readonly number[]>>;

/** A source with the metadata of a small model, heads of 8, and these float32 tensors. */
function source(more: Readonly<Record<string, unknown>>, tensors: Numbers = {}): WeightSource {
  const sizes = { 'attention.head_count': 4, embedding_length: 32, feed_forward_length: 64, block_count: 2 };
  const rest = { 'attention.layer_norm_rms_epsilon': 1e-5, context_length: 128, vocab_size: 96 };
  const fields = Object.entries({ ...sizes, ...rest, ...more }).map(
    ([key, value]) => [key.startsWith('tokenizer.') ? key : `qwen3.${key}`, value as MetadataValue] as const,
  );
  const entries = Object.entries(tensors).map(
    ([name, { length }]) => [name, { name, shape: [length], format: 'float32', bytes: 4 * length }] as const,
  );
  return {
    path: 'model.gguf',
    metadata: new Map([['general.architecture', 'qwen3'], ...fields]),
    entries: new Map(entries),
    read: (name, into) => new Float32Array(into.buffer).set(tensors[name]!),
    [Symbol.dispose]() {},
  };
}

const ropeIn = (scaling: Readonly<Record<string, unknown>>, tensors?: Numbers) =>
  ggufLlamaConfig(source(scaling, tensors)).rope_parameters as Record<string, unknown>;

const plain = { rope_theta: 10_000, rope_type: 'default' };

test('scaling in the metadata: none, linear, yarn', () => {
  assert.deepEqual(ropeIn({}), plain);
  assert.deepEqual(ropeIn({ 'rope.scaling.type': 'none', 'rope.scaling.factor': 4 }), plain);
  const linear = { rope_theta: 10_000, rope_type: 'linear', factor: 2 };
  assert.deepEqual(ropeIn({ 'rope.scaling.type': 'linear', 'rope.scaling.factor': 2 }), linear);
  assert.deepEqual(ropeIn({ 'rope.scaling.factor': 2 }), linear);
  assert.deepEqual(ropeIn({ 'rope.scale_linear': 2 }), linear);
  const yarn = { 'rope.scaling.type': 'yarn', 'rope.scaling.factor': 4, 'rope.scaling.original_context_length': 32 };
  const want = { rope_theta: 10_000, rope_type: 'yarn', factor: 4, original_max_position_embeddings: 32 };
  assert.deepEqual(ropeIn(yarn), want);
  const more = { 'rope.scaling.yarn_beta_fast': 16, 'rope.scaling.yarn_beta_slow': 2, 'rope.scaling.attn_factor': 0.5 };
  const attention_factor = 0.5 * (0.1 * Math.log(4) + 1);
  assert.deepEqual(ropeIn({ ...yarn, ...more }), { ...want, beta_fast: 16, beta_slow: 2, attention_factor });
  assert.throws(() => ropeIn({ ...yarn, 'rope.scaling.yarn_ext_factor': 0.5 }), /yarn_ext_factor is 0\.5/);
  assert.throws(() => ropeIn({ 'rope.scaling.type': 'ntk' }), /rope scaling of type 'ntk' is not supported/);
});

test('longrope has its divisors as tensors', () => {
  const [long, short] = [
    [1, 2, 3, 4],
    [1, 1, 1.5, 2],
  ];
  const scaling = { 'rope.scaling.type': 'longrope', 'rope.scaling.attn_factor': 1.25, 'rope.scaling.factor': 4 };
  const all = { ...scaling, 'rope.scaling.original_context_length': 32 };
  const got = ropeIn(all, { 'rope_factors_long.weight': long, 'rope_factors_short.weight': short });
  const lists = { long_factor: long, short_factor: short, attention_factor: 1.25 };
  const lengths = { factor: 4, original_max_position_embeddings: 32 };
  assert.deepEqual(got, { rope_theta: 10_000, rope_type: 'longrope', ...lengths, ...lists });
  assert.throws(() => ropeIn(all), /no rope_factors_long/);
  assert.throws(
    () => ropeIn(all, { 'rope_factors_long.weight': [1, 2], 'rope_factors_short.weight': short }),
    /4 posi/,
  );
});

test("one divisor for each frequency: Llama 3's four numbers where they give the same, else longrope with the divisors", () => {
  const theta = 500_000;
  for (const [factor, original] of [
    [8, 8192],
    [32, 8192],
    [4, 128],
  ] as const) {
    const frequencies = Array.from({ length: 16 }, (_, i) => Math.fround(1 / theta ** (i / 16)));
    const scaling = { factor, low: 1, high: 4, original };
    const divisors = frequencies.map((w) => Math.fround(w / llama3Frequency(w, scaling)));
    const sizes = { 'attention.key_length': 32, 'attention.value_length': 32, 'rope.freq_base': theta };
    const got = ropeIn(sizes, { 'rope_freqs.weight': divisors });
    assert.deepEqual([got.rope_type, got.factor, got.low_freq_factor, got.high_freq_factor], ['llama3', factor, 1, 4]);
    assert.equal(got.original_max_position_embeddings, original);
  }
  const odd = [1, 2, 1.5, 7].map(Math.fround);
  const got = ropeIn({ 'rope.freq_base': theta }, { 'rope_freqs.weight': odd });
  assert.deepEqual([got.rope_type, got.short_factor, got.long_factor], ['longrope', odd, odd]);
  const rope = ropeOf({ max_position_embeddings: 128, rope_parameters: got }, 8);
  assert.equal(rope.attentionFactor, 1);
  for (const length of [1, 128, 1000]) {
    const angles = rope.frequencies(rope.variantOf(length));
    odd.forEach((divisor, i) => {
      assert.ok(Math.abs(angles[i]! * divisor * theta ** (i / 4) - 1) < 1e-6, `${length} ${i}`);
    });
  }
  assert.deepEqual(ropeIn({}, { 'rope_freqs.weight': [1, 1, 1, 1] }), plain);
  const linear = { 'rope.scaling.type': 'linear', 'rope.scaling.factor': 2 };
  assert.deepEqual(
    ropeIn(linear, { 'rope_freqs.weight': odd }).short_factor,
    odd.map((divisor) => 2 * divisor),
  );
  const yarn = { 'rope.scaling.type': 'yarn', 'rope.scaling.factor': 2 };
  assert.throws(() => ropeIn(yarn, { 'rope_freqs.weight': odd }), /'yarn' with rope_freqs\.weight is not supported/);
});

test('token ids are kept; metadata that change the computation are refused', () => {
  const ids = {
    'tokenizer.ggml.bos_token_id': 1,
    'tokenizer.ggml.eos_token_id': 2,
    'tokenizer.ggml.padding_token_id': 0,
  };
  const config = ggufLlamaConfig(source(ids));
  assert.deepEqual([config.bos_token_id, config.eos_token_id, config.pad_token_id], [1, 2, 0]);
  const wrong: readonly [object, RegExp][] = [
    [{ final_logit_softcapping: 30 }, /qwen3\.final_logit_softcapping' is 30, which changes the computation/],
    [{ 'attention.causal': false }, /attention\.causal' is false/],
    [{ expert_count: 8 }, /expert_count' is 8/],
    [{ 'rope.dimension_count': 4 }, /rope\.dimension_count' is 4, and a head has 8 elements/],
    [{ 'attention.value_length': 16 }, /attention\.value_length' is 16/],
    [
      { 'attention.head_count_kv': [2, 4] },
      /head_count_kv' is 2 for layer 0 and 4 for layer 1\. Models whose layers differ/,
    ],
    [{ 'attention.head_count_kv': ['a'] }, /head_count_kv' is not a number/],
  ];
  const lists = { 'attention.head_count_kv': new Int32Array([2, 2]), 'attention.head_count': [4n, 4n] };
  const listed = ggufLlamaConfig(source(lists as Record<string, unknown>));
  assert.deepEqual([listed.num_key_value_heads, listed.num_attention_heads], [2, 4]);
  for (const [fields, why] of wrong)
    assert.throws(() => ggufLlamaConfig(source(fields as Record<string, unknown>)), why);
  const neutral = { expert_count: 0, 'attention.causal': true, logit_scale: 1, final_logit_softcapping: 0 };
  assert.deepEqual(ggufLlamaConfig(source(neutral)), ggufLlamaConfig(source({})));
});
