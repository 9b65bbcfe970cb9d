/** GPT-2, BERT and their like, with every task's head, against transformers' float64 (tools/golden/make_families.py). */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import test, { before } from 'node:test';
import { startEngine } from '../../src/engine/index.ts';
import { loadModel } from '../../src/models/index.ts';
import {
  Linear,
  type Model,
  moduleAt,
  namedModules,
  namedTensors,
  outputOf,
  type PackedTokens,
  packImages,
  packTokens,
} from '../../src/nn/index.ts';
import { noGrad, ops, scope, Tensor } from '../../src/tensor/index.ts';
import { golden, integers, numbers, readTensors, relativeError } from '../support.ts';

before(() => startEngine());

type Tensors = ReadonlyMap<string, Tensor>;

const families = readdirSync(golden('families'))
  .filter((name) => name !== 'llama-qa')
  .sort();

function packed(model: Model, tensors: Tensors, rows: readonly number[]): PackedTokens {
  if (model.image) {
    const images = rows.map((r) => numbers(tensors.get(`pixels.${r}`)!));
    return packImages(images, model.image);
  }
  const tokens = packTokens(rows.map((r) => integers(tensors.get(`ids.${r}`)!)));
  const types = rows.map(
    (r) => tensors.get(`token_types.${r}`) ?? ops.zeros([tensors.get(`ids.${r}`)!.numel], { dtype: 'int64' }),
  );
  return { ...tokens, types: ops.cat(types) };
}

/** The loss of row 0 as transformers has it, out of what the head says. */
function lossOf(model: Model, tensors: Tensors, tokens: PackedTokens): Tensor {
  const hidden = model.hidden(tokens);
  const cotangent = tensors.get('cotangent');
  if (cotangent) {
    const pooler = moduleAt(model.root, 'pooler.dense') as Linear;
    const pooled = ops.tanh(pooler.forward(ops.narrow(hidden, 0, 0, 1)));
    const error = relativeError(numbers(pooled), numbers(tensors.get('hidden.pooled')!));
    assert.ok(error <= 1e-5, `the pooled token differs by ${error}`);
    return ops.add(ops.sum(ops.mul(hidden, cotangent)), ops.sum(ops.mul(pooled, tensors.get('cotangent_pooled')!)));
  }
  if (model.task.name === 'causal-lm') {
    const labels = integers(tensors.get('labels')!);
    const targets = Tensor.from(BigInt64Array.from([...labels.slice(1), -100], BigInt));
    return ops.divScalar(model.lossSum(hidden, targets), labels.slice(1).filter((l) => l !== -100).length);
  }
  const labels = tensors.get('labels.0')!;
  const logits = model.logits(hidden, tokens.rowStarts, tokens.ids);
  const crossEntropy = (scores: Tensor, classes: readonly number[]) => {
    const known = [...classes.keys()].filter((i) => classes[i]! >= 0);
    const of = (values: readonly number[]) => Tensor.from(BigInt64Array.from(values, BigInt));
    const rows = ops.logSoftmax(ops.indexSelect(scores, 0, of(known)), -1);
    return ops.neg(ops.mean(ops.gather(rows, 1, ops.unsqueeze(of(known.map((i) => classes[i]!)), 1))));
  };
  if (model.task.name === 'question-answering') return crossEntropy(ops.t(logits), integers(labels));
  if (labels.dtype === 'int64') return crossEntropy(logits, integers(labels));
  if (logits.size(1) === 1) return ops.pow(ops.sub(ops.reshape(logits, []), labels), 2);
  // Several classes at once: binary cross-entropy of each.
  const row = ops.reshape(logits, labels.shape);
  const softplus = ops.log(ops.addScalar(ops.exp(row), 1));
  return ops.mean(ops.sub(softplus, ops.mul(row, labels)));
}

/** What block 0 is given and what comes out of every block, heard at the ports. */
function hiddenStates(model: Model, tokens: PackedTokens): Map<string, Float32Array> {
  const heard = new Map<string, Float32Array>();
  const stop = model.ports.add({
    enabled: true,
    embedded(x) {
      heard.set('embed', numbers(x).slice());
      return x;
    },
    afterMlp({ layer, delta, residual, norm }) {
      const sum = ops.add(residual, delta);
      heard.set(`${layer}`, numbers(norm?.(sum) ?? sum).slice());
      return delta;
    },
    ended(x) {
      heard.set('norm', numbers(x).slice());
      return x;
    },
  });
  noGrad(() => {
    using _ = scope();
    model.hidden(tokens);
  });
  stop();
  return heard;
}

let logitsCompared = 0;
let hiddenCompared = 0;
let gradientsCompared = 0;

for (const name of families) {
  test(`${name}: hidden states, logits, loss and all gradients equal transformers' float64`, () => {
    using _ = scope();
    using model = loadModel(golden('families', name));
    const { tensors, metadata } = readTensors(golden('families', name, 'golden.safetensors'));
    const { tolerance } = JSON.parse(String(metadata.get('provenance'))) as { tolerance: Record<string, number> };
    const close = (got: Tensor | Float32Array, key: string, kind: string) => {
      const error = relativeError(got instanceof Tensor ? numbers(got) : got, numbers(tensors.get(key)!));
      assert.ok(error <= tolerance[kind]!, `${key} differs by ${error}, more than ${tolerance[kind]}`);
    };
    const rows = [...tensors.keys()].filter((k) => /^(ids|pixels)\.\d+$/.test(k)).map((_, i) => i);

    noGrad(() => {
      if (tensors.has('logits.0')) {
        const tokens = packed(model, tensors, rows);
        const logits = outputOf(model, tokens);
        const perRow = logits.size(0) === rows.length;
        for (const r of rows) {
          const [start, end] = perRow ? [r, r + 1] : [tokens.rowStarts[r]!, tokens.rowStarts[r + 1]!];
          close(ops.narrow(logits, 0, start, end - start), `logits.${r}`, 'logits');
          logitsCompared++;
        }
      }
    });

    const first = packed(model, tensors, [0]);
    for (const [at, got] of hiddenStates(model, first)) {
      if (!tensors.has(`hidden.${at}`)) assert.equal(at, 'norm');
      else {
        close(got, `hidden.${at}`, 'hidden');
        hiddenCompared++;
      }
    }

    const parameters = new Map(
      [...namedTensors(model.root)].map(([key, tensor]) => [model.fileKey?.(key) ?? key, tensor]),
    );
    if (model.config.tie_word_embeddings && model.task.name === 'causal-lm') parameters.delete('lm_head.weight');
    for (const tensor of parameters.values()) tensor.requiresGrad = true;
    const loss = lossOf(model, tensors, first);
    const truth = tensors.get('loss') ?? tensors.get('loss.0')!;
    assert.ok(
      Math.abs(loss.item() / truth.item() - 1) <= Math.max(tolerance.loss!, 2e-6),
      `loss ${loss.item()}, not ${truth.item()}`,
    );
    loss.backward();
    const conv1d = new Set(
      [...namedModules(model.root)].flatMap(([path, m]) =>
        m instanceof Linear && m.transposed ? [`${path}.weight`] : [],
      ),
    );
    const wanted = [...tensors.keys()].filter((k) => k.startsWith('grad.'));
    let compared = 0;
    for (const key of wanted) {
      const tensor = parameters.get(key.slice(5));
      assert.ok(tensor, `the model has no ${key.slice(5)}`);
      const largest = numbers(tensors.get(key)!).reduce((a, x) => Math.max(a, Math.abs(x)), 0);
      const grad = tensor.grad!;
      // A gradient that is nothing in exact arithmetic (the keys' bias) is rounding here.
      if (largest === 0)
        assert.ok(
          numbers(grad).every((x) => Math.abs(x) < 1e-5),
          `${key} is not nothing`,
        );
      else close(conv1d.has(key.slice(5)) ? ops.contiguous(ops.t(grad)) : grad, key, 'grad');
      compared++;
    }
    assert.equal(compared, wanted.length);
    gradientsCompared += compared;
  });
}

test('so much was compared', (t) => {
  t.diagnostic(
    `${families.length} models: ${logitsCompared} rows of logits, ${hiddenCompared} hidden states, ${gradientsCompared} gradients`,
  );
  assert.equal(families.length, 21);
});
