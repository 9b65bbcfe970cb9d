import assert from 'node:assert/strict';
import { copyFileSync, cpSync, readFileSync, utimesSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { temporary } from '../../test/samples/io.ts';
import { golden } from '../../test/support.ts';
import { loadAdapter } from '../adapters/index.ts';
import { currentEngine, startEngine } from '../engine/index.ts';
import { loadModel } from '../models/index.ts';
import { type Model, outputOf, packTokens } from '../nn/index.ts';
import { noGrad, scope } from '../tensor/index.ts';
import { releaseModel, residentModel, residentTokenizer } from './resident.ts';

before(() => startEngine());

const logits = (model: Model): Float32Array =>
  noGrad(() => {
    using _ = scope();
    return (outputOf(model, packTokens([[3, 1, 4, 1, 5]])).data() as Float32Array).slice();
  });

const base = golden('models', 'llama2');
const [first, second] = ['llama2-embed-tokens', 'llama2-modules-to-save'].map((name) => golden('lora', name)) as [
  string,
  string,
];

/** What a model that is loaded for this adapter alone gives. */
function fresh(adapter?: string): Float32Array {
  using model = loadModel(base);
  using _ = adapter ? loadAdapter(model, adapter) : undefined;
  return logits(model);
}

test('one model for all adapters of a base; each gives what it gives alone, in any order', () => {
  const handles = currentEngine().native.memory().handles;
  const alone = new Map([undefined, first, second].map((adapter) => [adapter, fresh(adapter)]));
  assert.notDeepEqual(alone.get(first), alone.get(undefined));
  assert.notDeepEqual(alone.get(first), alone.get(second));
  const model = residentModel(base, 'none');
  const order = [undefined, first, second, first, undefined, second, undefined];
  for (const adapter of order) {
    assert.equal(residentModel(base, 'none', adapter), model);
    assert.deepEqual(logits(model), alone.get(adapter), adapter);
  }
  releaseModel();
  assert.equal(currentEngine().native.memory().handles, handles);
});

test('what was written again is loaded again, and so is what is held otherwise', () => {
  using dir = temporary();
  const [model, adapter] = [join(dir.path, 'model'), join(dir.path, 'adapter')];
  cpSync(base, model, { recursive: true });
  cpSync(first, adapter, { recursive: true });
  const before = residentModel(model, 'none', adapter);
  const said = logits(before);
  for (const name of ['adapter_config.json', 'adapter_model.safetensors'])
    copyFileSync(join(second, name), join(adapter, name));
  assert.equal(residentModel(model, 'none', adapter), before);
  assert.notDeepEqual(logits(before), said);
  utimesSync(join(model, 'model.safetensors'), 1, 1);
  const again = residentModel(model, 'none', adapter);
  assert.notEqual(again, before);
  assert.notEqual(residentModel(model, 'keep'), again);
  releaseModel();
});

test('the tokenizer is read once, and again when its file is another', () => {
  using dir = temporary();
  const path = dir.put('tokenizer.json', readFileSync(golden('tokenizer', 'llama3.json')));
  const tokenizer = residentTokenizer(dir.path);
  assert.equal(residentTokenizer(dir.path), tokenizer);
  copyFileSync(golden('tokenizer', 'qwen2.json'), path);
  assert.notEqual(residentTokenizer(dir.path), tokenizer);
  assert.equal(residentTokenizer(dir.path).idToToken(557), '<|endoftext|>');
});

test('an adapter that does not fit leaves the model in use', () => {
  const model = residentModel(base, 'none', first);
  assert.throws(() => residentModel(base, 'none', golden('lora', 'qwen2-all-linear')), /does not fit this base/);
  assert.equal(residentModel(base, 'none', first), model);
  assert.deepEqual(logits(model), fresh(first));
  releaseModel();
});

test('of many adapters the one that was used longest ago is taken off', () => {
  using dir = temporary();
  const copies = Array.from({ length: 20 }, (_, i) => join(dir.path, `adapter-${i}`));
  for (const copy of copies) cpSync(first, copy, { recursive: true });
  const handles: number[] = [];
  for (const copy of copies) {
    residentModel(base, 'none', copy);
    handles.push(currentEngine().native.memory().handles);
  }
  assert.ok(handles[15]! > handles[14]!);
  assert.equal(handles[19], handles[15], 'sixteen at most');
  assert.deepEqual(logits(residentModel(base, 'none', copies[0])), fresh(first));
  releaseModel();
});
