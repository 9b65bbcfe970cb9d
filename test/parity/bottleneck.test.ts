/** Bottleneck adapters alone, stacked, fused and averaged, compared with AdapterHub in float64 (tools/golden/make_adapterhub.py). */
import assert from 'node:assert/strict';
import { cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import test, { before } from 'node:test';
import { byFileKey } from '../../src/adapters/adapterhub/index.ts';
import {
  averageAdapters,
  loadAdapter,
  readAdapterConfig,
  saveAdapter,
  savedAdapters,
  taskOfAdapter,
} from '../../src/adapters/index.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { openSafetensors, openTorch, readJsonObject, type WeightSource } from '../../src/io/index.ts';
import { niceCoupling } from '../../src/methods/bottleneck/index.ts';
import { type Adapter, type AttachedAdapter, attachMethods, type SavableAdapter } from '../../src/methods/index.ts';
import { ParameterInit } from '../../src/methods/shared/index.ts';
import { loadModel } from '../../src/models/index.ts';
import { KvPool, type Model, outputOf, type PackedTokens, packImages, packTokens } from '../../src/nn/index.ts';
import { createOptimizer } from '../../src/optim/index.ts';
import { noGrad, ops, scope, Tensor } from '../../src/tensor/index.ts';
import { golden, integers, numbers, readTensors, relativeError, temporary } from '../support.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
});

type Setup = string | { stack: string[] } | { fuse: string[] } | { average: string[]; weights: number[] };

interface Facts {
  base: string;
  kind: 'lm' | 'class' | 'image';
  setup: Setup;
  trainable: string[];
  keys: Record<string, number[]>;
  fusion_regularization?: number;
  provenance: { tolerance: Record<'logits' | 'loss' | 'grad' | 'curve', number>; zero_gradients: string[] };
}

interface Row {
  readonly ids?: readonly number[];
  readonly pixels?: Float32Array;
  readonly labels: readonly number[];
}

const all = readdirSync(golden('adapterhub')).sort();
/** Other methods in AdapterHub's layout. */
const others = all.filter((name) => /^(lora|ia3|prefix)-/.test(name));
/** A head of AdapterHub's own model classes: it has its own test. */
const own = ['flex-head-bert'];
const cases = all.filter((name) => !others.includes(name) && !own.includes(name));

const packed = (model: Model, rows: readonly Row[]): PackedTokens =>
  model.image
    ? packImages(
        rows.map((r) => r.pixels!),
        model.image,
      )
    : packTokens(rows.map((r) => r.ids!));

/** Returns the mean loss over all labels of all rows. */
function lossOf(model: Model, kind: Facts['kind'], rows: readonly Row[]): Tensor {
  const tokens = packed(model, rows);
  const hidden = model.hidden(tokens);
  if (kind === 'lm') {
    const targets = rows.flatMap(({ labels }) => [...labels.slice(1), -100]);
    const count = targets.filter((t) => t !== -100).length;
    return ops.divScalar(model.lossSum(hidden, Tensor.from(BigInt64Array.from(targets, BigInt))), count);
  }
  const classes = Tensor.from(
    BigInt64Array.from(
      rows.map(({ labels }) => labels[0]!),
      BigInt,
    ),
    [rows.length, 1],
  );
  const scores = ops.logSoftmax(model.logits(hidden, tokens.rowStarts, tokens.ids), -1);
  return ops.neg(ops.mean(ops.gather(scores, 1, classes)));
}

const bytesOf = (source: WeightSource, key: string) => {
  const bytes = new Uint8Array(source.entries.get(key)!.bytes);
  source.read(key, bytes);
  return bytes;
};

/** Attaches the adapters of a case to the model; all of them are trained, as in the goldens. */
function attach(model: Model, dir: string, setup: Setup): AttachedAdapter[] {
  if (typeof setup === 'string') return [loadAdapter(model, join(dir, setup))];
  if ('stack' in setup) return setup.stack.map((name) => loadAdapter(model, join(dir, name)));
  if ('fuse' in setup) return [loadAdapter(model, join(dir, 'fusion'))];
  const adapters = setup.average.map((name) => join(dir, name));
  const choice = { type: 'fusion', config: 'average', adapters, weights: setup.weights } as const;
  return [attachMethods(model, [choice], 0, savedAdapters(model))];
}

/** Returns the trainable tensors by AdapterHub's names. */
function named(model: Model, attached: readonly AttachedAdapter[], setup: Setup): Map<string, Tensor> {
  const names = typeof setup === 'string' ? [setup] : 'stack' in setup ? setup.stack : [];
  const found = new Map<string, Tensor>();
  const add = (name: string, part: SavableAdapter) => {
    for (const [key, tensor] of byFileKey(model, name, part)) found.set(key, tensor);
  };
  attached.forEach((adapter, i) => {
    for (const [key, tensor] of adapter.head) found.set(key, tensor);
    const part = adapter.parts[0]!;
    if (!part.nested) add(names[i]!, part);
    else add([...part.nested.keys()].join(','), part);
    for (const [name, child] of part.nested ?? []) {
      add(name, child);
      for (const tensor of child.parameters.values()) tensor.requiresGrad = true;
    }
  });
  return found;
}

const counts = { logits: 0, gradients: 0, curves: 0, files: 0, tensors: 0, regularisations: 0 };

for (const name of cases) {
  test(`${name}: logits, loss, gradients, training and files equal AdapterHub's`, () => {
    using _ = scope();
    const dir = golden('adapterhub', name);
    const facts = JSON.parse(readFileSync(join(dir, 'golden.json'), 'utf8')) as Facts;
    const { tolerance, zero_gradients } = facts.provenance;
    const { tensors } = readTensors(join(dir, 'golden.safetensors'));
    const averaged = typeof facts.setup !== 'string' && 'average' in facts.setup;
    // AdapterHub divides the weighted sum once more by the number of adapters.
    const want = (key: string) => tensors.get(averaged ? `summed.${key}` : key)!;
    const rows = [0, 1].map((r): Row => {
      const labels = integers(tensors.get(`labels.${r}`)!);
      const pixels = tensors.get(`pixels.${r}`);
      return pixels ? { pixels: numbers(pixels), labels } : { ids: integers(tensors.get(`ids.${r}`)!), labels };
    });
    using model = loadModel(golden(...facts.base.split('/')));
    const logits = () => noGrad(() => numbers(outputOf(model, packed(model, rows))).slice());
    const plain = logits();
    const attached = attach(model, dir, facts.setup);

    const both = logits();
    const expected = [0, 1].flatMap((r) => Array.from(numbers(want(`logits.${r}`))));
    const error = relativeError(both, expected);
    assert.ok(error <= tolerance.logits, `logits differ by ${error}, more than ${tolerance.logits}`);
    counts.logits += expected.length;

    if (facts.fusion_regularization !== undefined) {
      const got = attached[0]!.regularisation!().item();
      assert.ok(Math.abs(got / facts.fusion_regularization - 1) <= 1e-5, `the regularisation is ${got}`);
      counts.regularisations++;
    }
    const tensorsByName = named(model, attached, facts.setup);
    const loss = lossOf(model, facts.kind, [rows[0]!]);
    const off = Math.abs(loss.item() / want('loss').item() - 1);
    assert.ok(off <= tolerance.loss, `the loss differs by ${off}`);
    loss.backward();
    const headTrained = facts.trainable.some((key) => key.startsWith('classifier.'));
    for (const key of [...tensorsByName.keys()].filter((k) => !facts.trainable.includes(k))) {
      assert.ok(
        key.startsWith('classifier.') ? !headTrained : /\.adapter_down\.0\.(weight|bias)$/.test(key),
        `${key} is not trained by AdapterHub`,
      );
    }
    for (const key of facts.trainable) {
      const tensor = tensorsByName.get(key);
      assert.ok(tensor, `${key} is not there`);
      const gradient = numbers(ops.contiguous(tensor.grad!));
      const off = zero_gradients.includes(key)
        ? Math.max(...gradient.map(Math.abs))
        : relativeError(gradient, numbers(want(`grad.${key}`)));
      assert.ok(off <= tolerance.grad, `the gradient of ${key} differs by ${off}, more than ${tolerance.grad}`);
      counts.gradients++;
    }
    for (const tensor of tensorsByName.values()) tensor.grad = undefined;

    checkFiles(model, dir, facts, attached, both);

    const curve = tensors.get('curve');
    if (curve) {
      const batches = readFileSync(golden('peft', `batches.${facts.kind}.jsonl`), 'utf8')
        .trim()
        .split('\n');
      const trained = new Map([...tensorsByName].filter(([key]) => facts.trainable.includes(key)));
      using optimizer = createOptimizer(
        { type: 'adamw', beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0 },
        trained,
      );
      numbers(curve).forEach((wanted, step) => {
        using _ = scope();
        const batch = (JSON.parse(batches[step]!).rows as { ids: number[]; labels: number | number[] }[]).map(
          ({ ids, labels }) => ({ ids, labels: [labels].flat() }),
        );
        const loss = lossOf(model, facts.kind, batch);
        const off = Math.abs(loss.item() / wanted - 1);
        assert.ok(off <= Math.min(1e-3, 10 * tolerance.curve), `the loss of step ${step + 1} differs by ${off}`);
        loss.backward();
        optimizer.step(1e-2);
        for (const tensor of trained.values()) tensor.grad = undefined;
      });
      counts.curves++;
    }

    for (const adapter of [...attached].reverse()) adapter.detach();
    assert.deepEqual(logits(), plain, 'detached restores the base, bit for bit');
  });
}

/** Checks that the saved files have AdapterHub's keys, values and config, and that the loaded adapter computes the same. */
function checkFiles(
  model: Model,
  dir: string,
  facts: Facts,
  attached: readonly AttachedAdapter[],
  logits: Float32Array,
) {
  using out = temporary();
  const names = typeof facts.setup === 'string' ? [facts.setup] : 'stack' in facts.setup ? facts.setup.stack : [];
  const compare = (mine: string, theirs: string, files: readonly string[], config: string) => {
    const [safe, pickle] = files as [string, string];
    using saved = openSafetensors(join(mine, safe));
    const has = readdirSync(theirs).includes(safe);
    using original = has ? openSafetensors(join(theirs, safe)) : openTorch(join(theirs, pickle));
    assert.deepEqual([...saved.entries.keys()].sort(), [...original.entries.keys()].sort());
    for (const key of original.entries.keys()) {
      assert.deepEqual(bytesOf(saved, key), bytesOf(original, key), key);
      counts.tensors++;
    }
    const [a, b] = [mine, theirs].map((at) => readJsonObject(join(at, config))) as [
      Record<string, unknown>,
      Record<string, unknown>,
    ];
    assert.deepEqual(
      Object.keys(a).filter((key) => key !== 'graft'),
      Object.keys(b),
    );
    for (const key of Object.keys(b)) assert.deepEqual(a[key], b[key], `${config}: ${key}`);
    counts.files++;
  };
  const adapterFiles = ['adapter.safetensors', 'pytorch_adapter.bin'];
  attached.forEach((adapter, i) => {
    const to = join(out.path, names[i] ?? 'fusion');
    saveAdapter(model, adapter, to, { base: facts.base });
    const inside = adapter.parts[0]!.nested;
    if (!inside) compare(to, join(dir, names[i]!), adapterFiles, 'adapter_config.json');
    for (const child of inside?.keys() ?? []) {
      compare(join(to, child), join(dir, child), adapterFiles, 'adapter_config.json');
    }
    if (readdirSync(dir).includes('fusion')) {
      const files = ['model_adapter_fusion.safetensors', 'pytorch_model_adapter_fusion.bin'];
      compare(to, join(dir, 'fusion'), files, 'adapter_fusion_config.json');
    }
    if (facts.trainable.includes('classifier.weight')) {
      compare(to, join(dir, names[i]!), ['model_head.safetensors', 'pytorch_model_head.bin'], 'head_config.json');
    }
  });
  using again = loadModel(golden(...facts.base.split('/')));
  const loaded = attached.map((_, i) => loadAdapter(again, join(out.path, names[i] ?? 'fusion')));
  const { tensors } = readTensors(join(dir, 'golden.safetensors'));
  const rows = [0, 1].map((r): Row => {
    const pixels = tensors.get(`pixels.${r}`);
    return pixels ? { pixels: numbers(pixels), labels: [] } : { ids: integers(tensors.get(`ids.${r}`)!), labels: [] };
  });
  assert.deepEqual(
    noGrad(() => numbers(outputOf(again, packed(again, rows)))),
    logits,
    'saved and loaded',
  );
  for (const adapter of loaded) adapter.detach();
}

test("flex-head-bert: a head of AdapterHub's own classes becomes this model's pooler and classifier", () => {
  using _ = scope();
  using out = temporary();
  const dir = golden('adapterhub', 'flex-head-bert');
  const { tensors, metadata } = readTensors(join(dir, 'golden.safetensors'));
  const { tolerance } = JSON.parse(String(metadata.get('provenance'))) as Facts['provenance'];
  const load = (from: string) => loadModel(golden('families', 'bert'), taskOfAdapter(from));
  using model = load(join(dir, 'task'));
  assert.equal(model.task.labels.length, 3);
  const rows = [0, 1].map(
    (r): Row => ({ ids: integers(tensors.get(`ids.${r}`)!), labels: integers(tensors.get(`labels.${r}`)!) }),
  );
  const logitsOn = (on: Model) => noGrad(() => numbers(outputOf(on, packed(on, rows))).slice());
  const plain = logitsOn(model);
  const adapter = loadAdapter(model, join(dir, 'task'));
  const logits = logitsOn(model);
  const expected = [0, 1].flatMap((r) => Array.from(numbers(tensors.get(`logits.${r}`)!)));
  assert.ok(relativeError(logits, expected) <= tolerance.logits);
  lossOf(model, 'class', [rows[0]!]).backward();
  const theirs = new Map([
    ['heads.task.1', 'bert.pooler.dense'],
    ['heads.task.4', 'classifier'],
  ]);
  const mine = new Map([...byFileKey(model, 'task', adapter.parts[0]!), ...adapter.head]);
  const compared = [...tensors.keys()].filter((key) => key.startsWith('grad.')).map((key) => key.slice(5));
  assert.equal(compared.length, 12);
  for (const key of compared) {
    const tensor = mine.get(key.replace(/^heads\.task\.\d/, (at) => theirs.get(at)!))!;
    const error = relativeError(numbers(ops.contiguous(tensor.grad!)), numbers(tensors.get(`grad.${key}`)!));
    assert.ok(error <= tolerance.grad, `the gradient of ${key} differs by ${error}`);
  }
  saveAdapter(model, adapter, join(out.path, 'task'), { base: 'b' });
  adapter.detach();
  assert.deepEqual(logitsOn(model), plain);
  using again = load(join(out.path, 'task'));
  using _loaded = loadAdapter(again, join(out.path, 'task'));
  assert.deepEqual(logitsOn(again), logits);
});

test('a head that this model does not have is refused, and the adapter works with a head of the model', () => {
  using _ = scope();
  using out = temporary();
  const odd = join(out.path, 'odd');
  cpSync(golden('adapterhub', 'flex-head-bert', 'task'), odd, { recursive: true });
  const file = join(odd, 'head_config.json');
  writeFileSync(file, readFileSync(file, 'utf8').replace('"layers": 2', '"layers": 3'));
  using model = loadModel(golden('families', 'bert-seqcls'));
  assert.throws(() => loadAdapter(model, odd), /flexible head of AdapterHub: it has 3 layers with tanh/);
  using tags = loadModel(golden('families', 'bert-tokcls'));
  assert.throws(() => loadAdapter(tags, odd), /its type classification is for another task/);
  using adapter: Adapter = loadAdapter(model, odd, 'own');
  assert.equal(readAdapterConfig(odd).parts[0]!.choice.type, 'bottleneck');
  assert.equal(adapter.parameters.size, 10);
});

test('the inverse of the invertible adapter restores its input', () => {
  using _ = scope();
  using init = new ParameterInit(3);
  for (const width of [32, 33]) {
    const coupling = niceCoupling(init, width, 2, ops.relu);
    for (const tensor of coupling.parameters.values()) noGrad(() => ops.copy_(tensor, init.normal(tensor.shape, 0.2)));
    const x = init.normal([7, width], 1);
    const y = coupling.forward(x);
    assert.ok(relativeError(numbers(y), numbers(x)) > 0.1);
    assert.ok(relativeError(numbers(coupling.inverse(y)), numbers(x)) < 2e-6);
  }
});

for (const name of ['average-weights-bert', 'average-weights-llama3']) {
  test(`${name}: the mean of the weights equals AdapterHub's`, () => {
    using _ = scope();
    using out = temporary();
    const { average } = readJsonObject(golden('adapterhub', name, 'golden.json')) as {
      average: { of: string[]; weights: number[] };
    };
    const dirs = average.of.map((of) => golden('adapterhub', name, of));
    const mean = join(out.path, 'avg');
    averageAdapters(dirs, average.weights, mean);
    const [mine, theirs] = [mean, golden('adapterhub', name, 'avg')];
    const [got, want] = [mine, theirs].map((dir) => readTensors(join(dir, 'adapter.safetensors')).tensors);
    assert.deepEqual([...got!.keys()].sort(), [...want!.keys()].sort());
    for (const [key, tensor] of want!) assert.ok(relativeError(numbers(got!.get(key)!), numbers(tensor)) < 1e-6, key);
    const [a, b] = [mine, theirs].map((dir) => readJsonObject(join(dir, 'adapter_config.json')));
    assert.deepEqual(a, b);
  });
}

test('adapters that differ cannot be averaged, and the error says why', () => {
  using out = temporary();
  const [a, other, wide] = [
    golden('adapterhub', 'average-weights-llama3', 'a'),
    golden('adapterhub', 'par-bn-llama3', 'task'),
    golden('adapterhub', 'average-weights-bert', 'a'),
  ];
  const mean = (dirs: string[], weights: number[]) => averageAdapters(dirs, weights, join(out.path, 'x'));
  assert.throws(() => mean([a, other], [1, 1]), /differs from the first adapter in .*is_parallel/);
  assert.throws(() => mean([a, wide], [1, 1]), /for another base/);
  assert.throws(() => mean([a, a], [1]), /1 weights for 2 adapters/);
  assert.throws(() => mean([a, a], [1, -1]), /sum to 0/);
  assert.throws(() => mean([golden('adapterhub', 'fuse-llama3', 'fusion')], [1]), /mean of a fusion/);
});

test('a post-norm family refuses a config without the norm', () => {
  using model = loadModel(golden('families', 'bert-seqcls'));
  const live = currentEngine().native.memory().handles;
  const choice = { type: 'bottleneck', config: 'adapter_plus' } as const;
  assert.throws(() => attachMethods(model, [choice], 0), /needs a model that normalises the input of its sublayers/);
  assert.equal(currentEngine().native.memory().handles, live);
});

test('one adapter works under the heads of two tasks', () => {
  using _ = scope();
  const dir = golden('adapterhub', 'seq-bn-bert', 'task');
  const rows = [[3, 1, 4, 1, 5]];
  for (const base of ['bert-seqcls', 'bert-tokcls']) {
    using model = loadModel(golden('families', base));
    const logits = () => noGrad(() => numbers(outputOf(model, packTokens(rows))).slice());
    const plain = logits();
    const adapter = loadAdapter(model, dir, 'own');
    assert.ok(relativeError(logits(), plain) > 1e-3);
    adapter.detach();
    assert.deepEqual(logits(), plain);
  }
});

for (const base of ['models/llama3', 'models/mistral', 'families/gpt2']) {
  test(`${base}: token by token, with a cache, adapters compute the same as on the whole row`, () => {
    using _ = scope();
    using model = loadModel(golden(...base.split('/')));
    const row = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3];
    const all = ['seq_bn_inv', 'par_bn', 'compacter'].map((config, i) => {
      const choice = { type: 'bottleneck', config, reduction_factor: 8, phm_init_range: 0.5 } as const;
      return attachMethods(model, [{ ...choice, inverse_before_head: config === 'seq_bn_inv' }], i);
    });
    for (const adapter of all) {
      for (const p of adapter.parameters.values()) {
        noGrad(() => ops.add_(p, ops.mulScalar(ops.cos(ops.mulScalar(p, 1e4)), 0.05)));
      }
    }
    noGrad(() => {
      const whole = numbers(outputOf(model, packTokens([row])));
      using pool = new KvPool(model, 1);
      const steps = [row.slice(0, 4), ...row.slice(4).map((id) => [id])];
      const pieces = steps.map((ids, i) => {
        const tokens = packTokens([ids]);
        const cache = { pool, blocks: [[0]], filled: [i === 0 ? 0 : 3 + i] };
        return model.logits(model.hidden(tokens, cache), tokens.rowStarts, tokens.ids);
      });
      const error = relativeError(numbers(ops.cat(pieces)), whole);
      assert.ok(error < 1e-5, `they differ by ${error}`);
    });
    for (const adapter of all.reverse()) adapter.detach();
  });
}

test('an adapter is named after its folder or its run, always by a name that AdapterHub can load', () => {
  using _ = scope();
  using out = temporary();
  using model = loadModel(golden('models', 'llama3'));
  using adapter = attachMethods(model, [{ type: 'bottleneck' }], 0);
  for (const [folder, name] of [
    ['german', 'german'],
    ['spam/adapter', 'spam'],
    ['double/best', 'double_adapter'],
    ['v1.2', 'v1_2'],
  ] as const) {
    const dir = join(out.path, folder);
    mkdirSync(dirname(dir), { recursive: true });
    saveAdapter(model, adapter, dir, { base: 'b' });
    assert.equal(readJsonObject(join(dir, 'adapter_config.json')).name, name);
    using saved = openSafetensors(join(dir, 'adapter.safetensors'));
    assert.ok([...saved.entries.keys()].every((key) => key.includes(`.adapters.${name}.`)));
  }
});

test('every golden was compared', (t) => {
  t.diagnostic(`${cases.length} cases, ${JSON.stringify(counts)}`);
  assert.deepEqual([all.length, cases.length, others.length, own.length], [63, 55, 7, 1]);
  assert.deepEqual([counts.curves, counts.regularisations], [5, 5]);
});
