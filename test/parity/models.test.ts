import assert from 'node:assert/strict';
import { copyFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { startEngine } from '../../src/engine/index.ts';
import { generate } from '../../src/generate/index.ts';
import { loadModel } from '../../src/models/index.ts';
import { moduleAt, namedTensors, outputOf, packTokens } from '../../src/nn/index.ts';
import { noGrad, ops, scope, Tensor } from '../../src/tensor/index.ts';
import { golden, integers, logitsOf, numbers, readTensors, relativeError, temporary } from '../support.ts';

before(() => startEngine());

const models = readdirSync(golden('models'));

test('there is a golden for every variant of the Llama family', () => {
  assert.deepEqual(models.sort(), [
    ...['llama-dynamic', 'llama-linear', 'llama-longrope', 'llama2', 'llama3', 'mistral', 'qwen2', 'qwen3'],
    'qwen3-yarn',
  ]);
});

for (const name of models) {
  test(`${name}: logits of all rows at once and gradients of all parameters equal transformers' float64`, () => {
    using _ = scope();
    using model = loadModel(golden('models', name));
    const { tensors } = readTensors(golden('models', name, 'golden.safetensors'));
    const rows = [...tensors.keys()].filter((k) => /^ids\.\d+$/.test(k)).sort();
    assert.ok(rows.length >= 3);
    const ids = rows.map((k) => integers(tensors.get(k)!));

    noGrad(() => {
      const packed = packTokens(ids);
      const logits = outputOf(model, packed);
      rows.forEach((key, r) => {
        const got = ops.narrow(logits, 0, packed.rowStarts[r]!, ids[r]!.length);
        const error = relativeError(numbers(got), numbers(tensors.get(key.replace('ids', 'logits'))!));
        assert.ok(error <= 1e-5, `logits of row ${r} differ by ${error}`);
      });
    });

    const parameters = new Map(namedTensors(model.root));
    if (model.config.tie_word_embeddings) parameters.delete('lm_head.weight');
    for (const tensor of parameters.values()) tensor.requiresGrad = true;
    const labels = integers(tensors.get('labels')!);
    const targets = Tensor.from(BigInt64Array.from([...labels.slice(1), -100], BigInt));
    const predicted = labels.slice(1).filter((l) => l !== -100).length;
    const loss = ops.divScalar(model.lossSum(model.hidden(packTokens([ids[0]!])), targets), predicted);
    assert.ok(Math.abs(loss.item() / tensors.get('loss')!.item() - 1) <= 2e-6);
    loss.backward();
    let compared = 0;
    for (const [key, tensor] of parameters) {
      const error = relativeError(numbers(tensor.grad!), numbers(tensors.get(`grad.${key}`)!));
      assert.ok(error <= 7e-5, `gradient of ${key} differs by ${error}`);
      compared++;
    }
    assert.equal(compared, [...tensors.keys()].filter((k) => k.startsWith('grad.')).length);
    assert.ok(moduleAt(model.root, 'model.layers.0.self_attn.q_proj'));
  });
}

for (const name of models) {
  test(`${name}: the config as transformers 4 writes it means the same model`, () => {
    using _ = scope();
    using dir = temporary();
    copyFileSync(golden('models', name, 'model.safetensors'), join(dir.path, 'model.safetensors'));
    copyFileSync(golden('models', name, 'config.v4.json'), join(dir.path, 'config.json'));
    using now = loadModel(golden('models', name));
    using old = loadModel(dir.path);
    const rows = [Array.from({ length: 40 }, (_, i) => 3 + ((7 * i) % 90)), [5, 6, 7]];
    assert.deepEqual(logitsOf(old, ...rows), logitsOf(now, ...rows));
  });
}

test('a prompt in the cache goes on as the whole row would, until rotary angles change with the length', () => {
  using _ = scope();
  const row = Array.from({ length: 12 }, (_, i) => 3 + ((7 * i) % 90));
  for (const name of ['qwen3-yarn', 'llama-longrope', 'llama-dynamic']) {
    using model = loadModel(golden('models', name));
    const tokens = [...generate(model, row, { temperature: 0, maxNewTokens: 4, prefillTokens: 5 })];
    const whole = [...row];
    while (whole.length < 16) {
      const last = logitsOf(model, whole).subarray(-model.vocabSize);
      whole.push(last.indexOf(last.reduce((a, b) => Math.max(a, b))));
    }
    assert.deepEqual(tokens, whole.slice(12), name);
  }
  using model = loadModel(golden('models', 'llama-longrope'));
  const more = generate(model, row, { temperature: 0, maxNewTokens: 8 });
  assert.throws(() => [...more], /a row of 16 tokens is continued to 17, where this model's rotary positions change/);
});
