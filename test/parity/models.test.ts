import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import test, { before } from 'node:test';
import { startEngine } from '../../src/engine/index.ts';
import { loadModel } from '../../src/models/index.ts';
import { moduleAt, namedTensors, outputOf, packTokens } from '../../src/nn/index.ts';
import { noGrad, ops, scope, Tensor } from '../../src/tensor/index.ts';
import { golden, integers, numbers, readTensors, relativeError } from '../support.ts';

before(() => startEngine());

const models = readdirSync(golden('models'));

test('there is a golden for every variant of the Llama family', () => {
  assert.deepEqual(models.sort(), ['llama-linear', 'llama2', 'llama3', 'mistral', 'qwen2', 'qwen3']);
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
