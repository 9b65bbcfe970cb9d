/** Fields of config.json that change the numbers: each is read, or refused with a value that matters. */
import assert from 'node:assert/strict';
import { copyFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { golden, logitsOf, temporary } from '../../test/support.ts';
import { startEngine } from '../engine/index.ts';
import { readJsonObject } from '../io/index.ts';
import { loadModel } from './index.ts';

before(() => startEngine());

/** Loads a golden with other fields; undefined deletes one. */
function loaded(base: readonly string[], fields: Record<string, unknown>) {
  using dir = temporary();
  copyFileSync(golden(...base, 'model.safetensors'), join(dir.path, 'model.safetensors'));
  const config = { ...readJsonObject(golden(...base, 'config.json')), ...fields };
  writeFileSync(join(dir.path, 'config.json'), JSON.stringify(config));
  return loadModel(dir.path);
}

test('fields of other architectures are refused where they would change the numbers, in every family', () => {
  const bases = [
    ['models', 'llama2'],
    ['models', 'mistral'],
    ['families', 'gpt2'],
    ['families', 'gpt-neox'],
    ['families', 'bert'],
    ['families', 'distilbert-seqcls'],
    ['families', 'vit'],
  ];
  const wrong = {
    attn_logit_softcapping: 50,
    final_logit_softcapping: 30,
    logit_scale: 0.0625,
    logits_scaling: 8,
    residual_multiplier: 0.22,
    embedding_multiplier: 12,
    query_pre_attn_scalar: 256,
    clip_qkv: 8,
    use_qk_norm: true,
    no_rope_layers: [1, 0],
    num_local_experts: 8,
    per_layer_config: { 0: { num_key_value_heads: 1 } },
  };
  let refused = 0;
  for (const base of bases) {
    for (const [field, value] of Object.entries(wrong)) {
      assert.throws(
        () => loaded(base, { [field]: value }),
        new RegExp(`config\\.json: ${field} is .*changes the comp`),
      );
      refused++;
    }
    const harmless = {
      attn_logit_softcapping: null,
      logit_scale: 1,
      use_qk_norm: false,
      no_rope_layers: [],
      num_local_experts: 0,
      use_cache: false,
      attention_dropout: 0.1,
      unheard_of: 3,
    };
    using model = loaded(base, harmless);
    assert.ok(model.parameters > 0);
  }
  assert.equal(refused, 84);
});

test('what a config leaves out is what transformers has for its model_type', () => {
  const row = Array.from({ length: 30 }, (_, i) => 3 + ((7 * i) % 90));
  using eight = loaded(['models', 'mistral'], {});
  using absent = loaded(['models', 'mistral'], { sliding_window: undefined });
  using none = loaded(['models', 'mistral'], { sliding_window: null });
  using wide = loaded(['models', 'mistral'], { sliding_window: 4096 });
  assert.deepEqual(logitsOf(absent, row), logitsOf(wide, row));
  assert.deepEqual(logitsOf(none, row), logitsOf(wide, row));
  assert.notDeepEqual(logitsOf(eight, row), logitsOf(wide, row));
  const positions = { llama2: 2048, mistral: 131_072, qwen2: 32_768, qwen3: 32_768 };
  for (const [name, length] of Object.entries(positions)) {
    using model = loaded(['models', name], { max_position_embeddings: undefined });
    assert.equal(model.contextLength, length, name);
  }
  assert.throws(() => loaded(['models', 'qwen3'], { head_dim: undefined }), /requires \[512, 32\]/); // 4 heads of 128
  assert.throws(() => loaded(['models', 'mistral'], { num_key_value_heads: undefined }), /multiple of 8 key\/value/);
});

test('layer_types says what the other fields say, or is refused', () => {
  const layers = (...names: string[]) => ({ layer_types: names });
  const [full, sliding] = ['full_attention', 'sliding_attention'];
  const wrong: readonly [string, object, RegExp][] = [
    ['llama2', layers(full, sliding), /layer_types has 'sliding_attention'; .*llama model has full_attention$/],
    ['mistral', layers(sliding, full), /layer_types has 'full_attention'; .*mistral model has sliding_attention$/],
    ['qwen2', layers(full, sliding), /layer_types has 'sliding_attention'/],
    ['qwen3', layers(full), /layer_types has 1 entries for 2 layers/],
    ['qwen2', layers(full, 'chunked_attention'), /layer_types has 'chunked_attention'/],
  ];
  for (const [name, fields, why] of wrong) {
    assert.throws(
      () => loaded(['models', name], fields as Record<string, unknown>),
      (error: Error) => why.test(error.message.replace(/\.$/, '')),
    );
  }
  const window = { use_sliding_window: true, sliding_window: 4 };
  const row = Array.from({ length: 20 }, (_, i) => 3 + ((7 * i) % 90));
  using both = loaded(['models', 'qwen2'], { ...window, ...layers(sliding, sliding) });
  using last = loaded(['models', 'qwen2'], { ...window, ...layers(full, sliding) });
  using byNumber = loaded(['models', 'qwen2'], { ...window, layer_types: undefined, max_window_layers: 1 });
  assert.deepEqual(logitsOf(last, row), logitsOf(byNumber, row));
  assert.notDeepEqual(logitsOf(last, row), logitsOf(both, row));
});
