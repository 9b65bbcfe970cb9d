/** GPT-NeoX: what its goldens of transformers 5 do not show. */
import assert from 'node:assert/strict';
import { copyFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { golden, logitsOf, readTensors, temporary } from '../../test/support.ts';
import { startEngine } from '../engine/index.ts';
import { readJsonObject, writeSafetensors } from '../io/index.ts';
import { ops, scope, type Tensor } from '../tensor/index.ts';
import { loadModel } from './index.ts';

before(() => startEngine());

const original = golden('families', 'gpt-neox');

/** Returns the golden's config with other fields. */
const configWith = (fields: object): string =>
  JSON.stringify({ ...readJsonObject(join(original, 'config.json')), ...fields });

test('checkpoints before transformers 5: rotary_pct and rotary_emb_base, masks among the weights', () => {
  using _ = scope();
  using dir = temporary();
  const row = [7, 31, 5, 60, 22, 9, 44];
  const config = { rope_parameters: undefined, rotary_pct: 0.5, rotary_emb_base: 10000, rope_scaling: null };
  writeFileSync(join(dir.path, 'config.json'), configWith(config));
  const mask = ops.ones([1, 1, 64, 64]);
  const [{ tensors }, masks] = [
    readTensors(join(original, 'model.safetensors')),
    ['bias', 'masked_bias', 'rotary_emb.inv_freq'].map(
      (name) => [`gpt_neox.layers.0.attention.${name}`, mask] as const,
    ),
  ];
  writeSafetensors(
    join(dir.path, 'model.safetensors'),
    [...tensors, ...masks].map(([name, t]: readonly [string, Tensor]) => {
      return { name, dtype: t.dtype, shape: t.shape, bytes: () => t.bytes() };
    }),
  );
  using now = loadModel(original);
  using old = loadModel(dir.path);
  assert.deepEqual(logitsOf(old, row), logitsOf(now, row));
  using otherTheta = (() => {
    writeFileSync(join(dir.path, 'config.json'), configWith({ ...config, rotary_emb_base: 5000 }));
    return loadModel(dir.path);
  })();
  assert.notDeepEqual(logitsOf(otherTheta, row), logitsOf(now, row));
});

test('configs that cannot be computed', () => {
  const wrong: readonly [object, RegExp][] = [
    [{ num_attention_heads: 5 }, /hidden_size 32 is not a multiple of the 5 attention heads/],
    [
      { rope_parameters: { partial_rotary_factor: 0.4 } },
      /partial_rotary_factor 0\.4 rotates 3 of a head's 8 elements/,
    ],
    [
      { rope_parameters: { partial_rotary_factor: 0.1 } },
      /partial_rotary_factor 0\.1 rotates 0 of a head's 8 elements/,
    ],
    [{ rope_parameters: { rope_type: 'yarn' } }, /the rope parameter 'factor' is missing/],
    [{ rope_parameters: { rope_type: 'ntk' } }, /rope scaling of type 'ntk' is not supported/],
    [{ partial_rotary_factor: 0.75 }, /partial_rotary_factor is 0\.75, and the fields that gpt_neox reads say 0\.5/],
    [{ rope_theta: 5000 }, /rope_theta is 5000, and the fields that gpt_neox reads say 10000/],
    [{ hidden_act: 'gleu' }, /the activation 'gleu' is not one of/],
  ];
  for (const [fields, why] of wrong) {
    using dir = temporary();
    writeFileSync(join(dir.path, 'config.json'), configWith(fields));
    copyFileSync(join(original, 'model.safetensors'), join(dir.path, 'model.safetensors'));
    assert.throws(() => loadModel(dir.path), why);
  }
});
