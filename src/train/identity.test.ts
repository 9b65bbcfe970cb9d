import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { temporary } from '../../test/support.ts';
import { differences, identityOf } from './identity.ts';
import { parseRecipe } from './recipe.ts';

test('files of a model that decide losses are part of the identity of a run, and others are not', () => {
  using dir = temporary();
  const model = join(dir.path, 'model');
  mkdirSync(join(model, '1_Pooling'), { recursive: true });
  const decisive = [
    'config.json',
    'preprocessor_config.json',
    'modules.json',
    '1_Pooling/config.json',
    'model.safetensors',
  ];
  const others = ['README.md', 'generation_config.json', 'tokenizer_config.json'];
  for (const name of [...decisive, ...others]) writeFileSync(join(model, name), '{"a": 1}');
  const recipe = parseRecipe({ model, method: { type: 'lora' }, data: { train: 'rows.jsonl' }, run: { dir: 'out' } });
  let before = identityOf(recipe, model);
  for (const [i, name] of [...decisive, ...others].entries()) {
    writeFileSync(join(model, name), '{"a": 2, "b": 3}');
    const now = identityOf(recipe, model);
    const expected = i < decisive.length ? [`model (${model}) changed`] : [];
    assert.deepEqual(differences(before, now), expected, name);
    before = now;
  }
});
