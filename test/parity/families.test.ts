/** GPT-2, BERT and their like, with every task's head, against transformers' float64 (tools/golden/make_families.py). */
import assert from 'node:assert/strict';
import { copyFileSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { startEngine } from '../../src/engine/index.ts';
import { generate } from '../../src/generate/index.ts';
import { readJsonObject, writeSafetensors } from '../../src/io/index.ts';
import { headOf, loadModel, families as registry, saveModel } from '../../src/models/index.ts';
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
import { golden, integers, logitsOf, numbers, readTensors, relativeError, temporary } from '../support.ts';

before(() => startEngine());

type Tensors = ReadonlyMap<string, Tensor>;

const families = readdirSync(golden('families')).sort();

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
    afterEmbedding(x) {
      heard.set('embed', numbers(x).slice());
      return x;
    },
    afterMlp({ layer, delta, residual, norm }) {
      const sum = ops.add(residual, delta);
      heard.set(`${layer}`, numbers(norm?.(sum) ?? sum).slice());
      return delta;
    },
    afterFinalNorm(x) {
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

let tensorsSaved = 0;

for (const name of families) {
  test(`${name}: saved again it has the tensors that transformers wrote, bit for bit, and its class`, () => {
    using _ = scope();
    using dir = temporary();
    using model = loadModel(golden('families', name));
    const out = join(dir.path, 'saved');
    saveModel(model, out, golden('families', name));
    const want = readTensors(golden('families', name, 'model.safetensors')).tensors;
    const got = readTensors(join(out, 'model.safetensors')).tensors;
    assert.deepEqual([...got.keys()].sort(), [...want.keys()].sort());
    for (const [key, tensor] of want) {
      assert.deepEqual(got.get(key)!.shape, tensor.shape, key);
      assert.deepEqual(numbers(got.get(key)!), numbers(tensor), key);
      tensorsSaved++;
    }
    const config = readJsonObject(join(out, 'config.json'));
    const before = readJsonObject(golden('families', name, 'config.json'));
    for (const field of ['architectures', 'id2label', 'label2id', 'problem_type', 'tie_word_embeddings'])
      assert.deepEqual(config[field], before[field], field);
  });
}

const newHeads = [
  { from: 'bert', task: 'sequence-classification', like: 'BertForSequenceClassification', head: /^classifier\./ },
  { from: 'bert', task: 'token-classification', like: 'BertForTokenClassification', head: /^classifier\./ },
  { from: 'bert', task: 'question-answering', like: 'BertForQuestionAnswering', head: /^qa_outputs\./ },
  { from: 'gpt2', task: 'sequence-classification', like: 'GPT2ForSequenceClassification', head: /^score\./ },
  { from: 'gpt2-seqcls', task: 'token-classification', like: 'GPT2ForTokenClassification', head: /^classifier\./ },
  { from: 'bert-seqcls', task: 'embedding', like: 'BertModel', head: /^$/ },
  { from: 'roberta-tokcls', task: 'question-answering', like: 'RobertaForQuestionAnswering', head: /^qa_outputs\./ },
  {
    from: 'distilbert-tokcls',
    task: 'sequence-classification',
    like: 'DistilBertForSequenceClassification',
    head: /^pre_/,
  },
  { from: 'llama-seqcls', task: 'question-answering', like: 'LlamaForQuestionAnswering', head: /^qa_outputs\./ },
  { from: 'llama-qa', task: 'embedding', like: 'LlamaModel', head: /^$/ },
  { from: 'vit', task: 'embedding', like: 'ViTModel', head: /^$/ },
] as const;

for (const { from, task, like, head } of newHeads) {
  test(`${from} loads for ${task}: what the head lacks is made new, and it is saved as ${like}`, () => {
    using _ = scope();
    using dir = temporary();
    const named = task === 'sequence-classification' || task === 'token-classification';
    const path = golden('families', from);
    using model = loadModel(path, { task, ...(named && from !== 'distilbert-tokcls' && { labels: ['no', 'yes'] }) });
    saveModel(model, join(dir.path, 'saved'), path);
    using again = loadModel(join(dir.path, 'saved'));
    assert.equal(again.architecture, like);
    assert.deepEqual(again.task, model.task);
    const before = new Map(namedTensors(model.root));
    let made = 0;
    for (const [key, tensor] of namedTensors(again.root)) {
      assert.deepEqual(numbers(tensor), numbers(before.get(key)!), key);
      if (head.test(key)) made++;
    }
    assert.equal(made > 0, head.source !== '^$');
  });
}

const prompt = [7, 31, 5, 60, 22, 9, 44];
const options = { temperature: 0, maxNewTokens: 20 };

for (const name of families.filter((name) => headOf(golden('families', name)).name === 'causal-lm')) {
  test(`${name}: with a cache, and read in pieces, it writes what reading the whole row again gives`, () => {
    using _ = scope();
    using model = loadModel(golden('families', name));
    const written = [...generate(model, prompt, { ...options, prefillTokens: 3 })];
    const row = [...prompt];
    for (let i = 0; i < 20; i++) {
      const logits = logitsOf(model, row);
      const last = logits.subarray(logits.length - model.vocabSize);
      row.push(last.indexOf(last.reduce((a, b) => Math.max(a, b))));
    }
    assert.deepEqual(written, row.slice(prompt.length));
  });
}

for (const name of ['gpt2', 'gpt2-scaled']) {
  test(`${name}: positions end where the context is full`, () => {
    using _ = scope();
    using model = loadModel(golden('families', name));
    const room = model.contextLength - prompt.length;
    assert.equal([...generate(model, prompt, { ...options, maxNewTokens: 500 })].length, room);
    assert.throws(() => logitsOf(model, new Array(model.contextLength + 1).fill(3)), /a row has \d+ tokens/);
  });
}

test('files as old checkpoints have them: no prefix, masks among the weights, names of TensorFlow', () => {
  using _ = scope();
  using dir = temporary();
  const renamed = (name: string, rename: (key: string) => string, more: Record<string, Tensor> = {}) => {
    const out = join(dir.path, name);
    mkdirSync(out);
    copyFileSync(golden('families', name, 'config.json'), join(out, 'config.json'));
    const { tensors } = readTensors(golden('families', name, 'model.safetensors'));
    const entries = [...[...tensors].map(([key, tensor]) => [rename(key), tensor] as const), ...Object.entries(more)];
    writeSafetensors(
      join(out, 'model.safetensors'),
      entries.map(([key, t]) => ({ name: key, dtype: t.dtype, shape: t.shape, bytes: () => t.bytes() })),
    );
    return out;
  };
  const mask = ops.ones([1, 1, 64, 64]);
  const gpt2 = renamed('gpt2', (key) => key.replace('transformer.', ''), {
    'h.0.attn.bias': mask,
    'h.1.attn.bias': mask,
  });
  const bert = renamed('bert-tokcls', (key) =>
    key.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta'),
  );
  const row = [7, 31, 5, 60, 22];
  for (const [name, path] of [
    ['gpt2', gpt2],
    ['bert-tokcls', bert],
  ] as const) {
    using old = loadModel(path);
    using now = loadModel(golden('families', name));
    assert.deepEqual(logitsOf(old, row), logitsOf(now, row), name);
  }
});

test('a model without a language-model head does not generate text', () => {
  using model = loadModel(golden('families', 'bert-seqcls'));
  assert.throws(
    () => [...generate(model, [5, 6], { maxNewTokens: 2 })],
    /sequence-classification, and does not generate text/,
  );
});

test('GPT-2 held in int8 and its Conv1D weights: near the dense model, and written dense again', () => {
  using _ = scope();
  using dir = temporary();
  using dense = loadModel(golden('families', 'gpt2'));
  using packed = loadModel(golden('families', 'gpt2'), { quantize: 'int8' });
  const row = [7, 31, 5, 60, 22, 9, 44];
  const drift = relativeError(logitsOf(packed, row), logitsOf(dense, row));
  assert.ok(drift > 1e-5 && drift < 0.05, `int8 drifts by ${drift}`);
  saveModel(packed, join(dir.path, 'saved'), golden('families', 'gpt2'));
  using again = loadModel(join(dir.path, 'saved'));
  const error = relativeError(logitsOf(again, row), logitsOf(packed, row));
  assert.ok(error <= 1e-5, `saved it differs by ${error}`);
});

test('configs that cannot be computed say which field, and in which file', () => {
  const wrong: readonly [string, object, RegExp][] = [
    ['bert', { hidden_act: 'gelu_nwe' }, /config\.json: the activation 'gelu_nwe' is not one of .*mean 'gelu_new'/],
    ['bert', { position_embedding_type: 'relative_key' }, /config\.json: position_embedding_type/],
    ['bert', { is_decoder: true }, /config\.json: is_decoder/],
    ['bert', { num_attention_heads: 5 }, /hidden_size 32 is not a multiple of the 5 attention heads/],
    ['gpt2', { n_head: 5 }, /config\.json: n_embd 32 is not a multiple of the 5 attention heads/],
    ['gpt2', { add_cross_attention: true }, /config\.json: add_cross_attention/],
    ['distilbert-seqcls', { dim: 15 }, /dim 15 is not a multiple of the 2 attention heads/],
    ['vit', { image_size: 17 }, /image_size 17 × 17 is not a multiple of patch_size 8 × 8/],
    ['vit', { image_size: 24 }, /position_embeddings is \[1, 5, 32\], the config requires \[1, 10, 32\]/],
    ['bert-seqcls', { id2label: { 0: 'a' } }, /classifier\.weight is \[3, 32\], the config requires \[1, 32\]/],
  ];
  for (const [name, fields, why] of wrong) {
    using dir = temporary();
    copyFileSync(golden('families', name, 'model.safetensors'), join(dir.path, 'model.safetensors'));
    const config = { ...readJsonObject(golden('families', name, 'config.json')), ...fields };
    writeFileSync(join(dir.path, 'config.json'), JSON.stringify(config));
    assert.throws(() => loadModel(dir.path), why);
  }
});

test('an image of another size, and ids where images are seen, are refused', () => {
  using model = loadModel(golden('families', 'vit'));
  assert.throws(() => packImages([new Float32Array(3 * 15 * 16)], model.image!), /720 numbers.*3 × 16 × 16 = 768/);
  assert.throws(() => model.hidden(packTokens([[1, 2]])), /vit models read images/);
});

test('a task that a family does not have is refused', () => {
  assert.throws(() => loadModel(golden('families', 'bert'), { task: 'causal-lm' }), /bert models cannot be loaded for/);
  assert.throws(() => loadModel(golden('families', 'vit'), { task: 'token-classification' }), /vit models cannot/);
});

test('so much was compared', (t) => {
  t.diagnostic(
    `${families.length} models: ${logitsCompared} rows of logits, ${hiddenCompared} hidden states, ${gradientsCompared} gradients, ${tensorsSaved} saved tensors`,
  );
  const types = families.map((name) => readJsonObject(golden('families', name, 'config.json')).model_type);
  const without = registry.filter((family) => !family.types.some((type) => types.includes(type)));
  assert.deepEqual(without, [], 'every family has a golden');
  assert.ok(families.length >= 23);
});

test("what looks for answers has transformers' name of the decoder: Mistral's is `model`, the others' `transformer`", () => {
  const blocks = ['mistral', 'llama3', 'qwen2'].map((name) => {
    using model = loadModel(golden('models', name), { task: 'question-answering' });
    return model.sites.block;
  });
  assert.deepEqual(blocks, ['model.layers.*', 'transformer.layers.*', 'transformer.layers.*']);
});
