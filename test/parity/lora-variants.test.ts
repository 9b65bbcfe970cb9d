/** LoRA's variants, and LoRA on every family and task, compared with PEFT. */
import assert from 'node:assert/strict';
import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { combineAdapters, convertAdapter, loadAdapter, saveAdapter, taskOfAdapter } from '../../src/adapters/index.ts';
import { startEngine } from '../../src/engine/index.ts';
import { attachMethods } from '../../src/methods/index.ts';
import { loftq } from '../../src/methods/lora/index.ts';
import { loadModel } from '../../src/models/index.ts';
import { type Linear, moduleAt, unwrapped } from '../../src/nn/index.ts';
import { noGrad, ops, scope, type Tensor } from '../../src/tensor/index.ts';
import { parseRecipe, runTraining } from '../../src/train/index.ts';
import { golden, numbers, readTensors, relativeError, temporary } from '../support.ts';
import {
  comparedLogits,
  curve,
  curveError,
  differingFields,
  goldensOf,
  gradientsOf,
  logitsOfRows,
  lossOf,
  mergesAndBack,
  outputs,
  prefix,
  readGolden,
  sameFile,
  savesAsPeft,
} from './peft.ts';

before(() => startEngine());

const plain = goldensOf(/^(dora|lora|rslora|tokens|embed|tying|saved|loraplus)-/);
const rebased = goldensOf(/^(pissa|olora)-/);
const counts = { logits: 0, gradients: 0, curves: 0, files: 0 };

test('there is a golden for every variant', () => assert.deepEqual([plain.length, rebased.length], [32, 4]));

/** Where PEFT has two parameters that share memory, Graft has one, whose gradient is the sum of both (one of them transposed). */
const tiedKeys: Readonly<Record<string, string>> = {
  'model.embed_tokens.lora_embedding_A': 'lm_head.lora_B.weight',
  'model.embed_tokens.lora_embedding_B': 'lm_head.lora_A.weight',
};

for (const name of plain) {
  test(`${name}: loading, logits, gradients, merging, twenty steps and saving as in PEFT`, () => {
    using _ = scope();
    using folder = temporary();
    const want = readGolden(name);
    const { dir, base, kind, rows, tensors, tolerance } = want;
    using model = loadModel(base, taskOfAdapter(dir));
    const untouched = logitsOfRows(model, kind, rows);
    const adapter = loadAdapter(model, dir);
    const attached = comparedLogits(model, want);
    counts.logits += attached.length;

    const loss = lossOf(kind, outputs(model, kind, rows.slice(0, 1)), rows.slice(0, 1));
    assert.ok(Math.abs(loss.item() / tensors.get('loss')!.item() - 1) <= 3e-6, `loss ${loss.item()}`);
    loss.backward();
    const gradients = gradientsOf(adapter.parameters);
    for (const [key, got] of gradients) {
      const own = tensors.get(`grad.${prefix}${key}`)!;
      const other = tiedKeys[key] && tensors.get(`grad.${prefix}${tiedKeys[key]}`);
      const sum = other ? numbers(ops.contiguous(ops.add(own, ops.t(other)))) : numbers(own);
      const error = relativeError(got, sum);
      assert.ok(error <= Math.max(tolerance.grad, 5e-5), `the gradient of ${key} differs by ${error}`);
      counts.gradients++;
    }
    const known = [...tensors.keys()].filter((key) => key.startsWith('grad.')).length;
    assert.equal(gradients.size + (tensors.has('curve.summed') ? 2 : 0), known);

    if (adapter.merge) mergesAndBack(model, adapter, want, attached);
    else assert.equal(name, 'lora-bias-llama3', 'only an update with a bias, on a layer without one, cannot be merged');

    savesAsPeft(model, adapter, want, join(folder.path, 'saved'));
    counts.files++;

    if (tensors.has('curve')) {
      adapter.detach();
      const config = name === 'loraplus-llama3' ? { loraplus_lr_ratio: 8, loraplus_lr_embedding: 1e-3 } : {};
      using trained = attachedWith(model, dir, config);
      const losses = numbers(tensors.get('curve.summed') ?? tensors.get('curve')!);
      const error = curveError(curve(model, trained, kind, { lr: name === 'loraplus-llama3' ? 2e-3 : 1e-2 }), losses);
      assert.ok(error <= 1e-4, `the losses of twenty steps differ by ${error}`);
      counts.curves++;
    } else adapter.detach();
    assert.deepEqual(logitsOfRows(model, kind, rows), untouched, 'detached restores the base, bit for bit');
  });
}

/** The saved adapter with some fields changed. */
function attachedWith(model: Parameters<typeof loadAdapter>[0], dir: string, fields: object) {
  const saved = loadAdapter(model, dir);
  if (Object.keys(fields).length === 0) return saved;
  const config = { type: 'lora' as const, ...saved.parts[0]!.config, ...fields };
  const other = attachMethods(model, [config], 0);
  noGrad(() => {
    for (const [key, tensor] of other.parameters) ops.copy_(tensor, saved.parameters.get(key)!);
  });
  saved.detach();
  return other;
}

for (const name of rebased) {
  test(`${name}: initial values, twenty steps, logits, gradients and a file of plain LoRA with twice the rank as in PEFT`, () => {
    using _ = scope();
    using folder = temporary();
    const { dir, base, kind, rows, tensors, tolerance } = readGolden(name);
    using model = loadModel(base);
    const untouched = logitsOfRows(model, kind, rows);
    const { tensors: own } = readTensors(join(dir, 'adapter_model.safetensors'));

    // From the initial values: the same residual base, product and losses, and the same adapter for the original base.
    const config = { type: 'lora' as const, ...loadedConfig(model, dir) };
    const fresh = attachMethods(model, [config], 0);
    const starts = [...tensors.keys()].filter((key) => key.startsWith('init.base.')).map((key) => key.slice(10));
    assert.ok(starts.length > 0);
    for (const path of starts) {
      const product = (a: Tensor, b: Tensor) => numbers(noGrad(() => ops.mm(b, a)));
      const [a, b] = ['A', 'B'].map((m) => fresh.parameters.get(`${path}.lora_${m}.weight`)!) as [Tensor, Tensor];
      // GPT-2 stores its weights transposed.
      const layer = unwrapped(moduleAt(model.root, path)) as Linear;
      const left = tensors.get(`init.base.${path}`)!;
      const kept = numbers(ops.contiguous(layer.transposed ? ops.t(left) : left));
      assert.ok(relativeError(numbers(layer.weight), kept) <= 1e-5, `the base of ${path}`);
      const want = product(tensors.get(`init.A.${path}`)!, tensors.get(`init.B.${path}`)!);
      assert.ok(relativeError(product(a, b), want) <= 1e-5, `the start of ${path}`);
    }
    logitsOfRows(model, kind, rows).forEach((got, r) => {
      assert.ok(relativeError(got, untouched[r]!) <= 2e-5, 'nothing changes at first');
    });
    const error = curveError(curve(model, fresh, kind), numbers(tensors.get('curve')!));
    assert.ok(error <= 1e-4, `the losses of twenty steps differ by ${error}`);
    counts.curves++;
    const trained = logitsOfRows(model, kind, rows);
    const saved = join(folder.path, 'saved');
    saveAdapter(model, fresh, saved, { base });
    fresh.detach();
    assert.deepEqual(logitsOfRows(model, kind, rows), untouched, 'detached restores the base, bit for bit');
    {
      using plain = loadAdapter(model, saved);
      logitsOfRows(model, kind, rows).forEach((got, r) => {
        assert.ok(relativeError(got, trained[r]!) <= 2e-5, 'the file is for the untouched base');
      });
      assert.equal(plain.parts[0]!.config.init_lora_weights, true);
    }
    assert.deepEqual(differingFields(saved, join(dir, 'converted')), []);
    {
      using converted = loadAdapter(model, join(dir, 'converted'));
      logitsOfRows(model, kind, rows).forEach((got, r) => {
        const error = relativeError(got, numbers(tensors.get(`logits.${r}`)!));
        assert.ok(error <= 1e-4, `PEFT's converted adapter: row ${r} differs by ${error}`);
        counts.logits++;
      });
      assert.deepEqual(converted.warnings, []);
    }

    // PEFT's file of the trained matrices alone: the residual base is computed again when it is loaded.
    const adapter = loadAdapter(model, dir);
    logitsOfRows(model, kind, rows).forEach((got, r) => {
      const error = relativeError(got, numbers(tensors.get(`logits.${r}`)!));
      assert.ok(error <= Math.max(tolerance.logits, 2e-5), `the logits of row ${r} differ by ${error}`);
      counts.logits++;
    });
    lossOf(kind, outputs(model, kind, rows.slice(0, 1)), rows.slice(0, 1)).backward();
    for (const [key, got] of gradientsOf(adapter.parameters)) {
      const error = relativeError(got, numbers(tensors.get(`grad.${prefix}${key}`)!));
      assert.ok(error <= Math.max(tolerance.grad, 5e-5), `the gradient of ${key} differs by ${error}`);
      counts.gradients++;
    }
    assert.equal(adapter.parameters.size, own.size);
    adapter.detach();
    assert.deepEqual(logitsOfRows(model, kind, rows), untouched);
    counts.files++;
  });
}

function loadedConfig(model: Parameters<typeof loadAdapter>[0], dir: string) {
  using adapter = loadAdapter(model, dir);
  return adapter.parts[0]!.config;
}

test('LoRA+ in a recipe that begins from a saved adapter: the losses are PEFT’s, and the file does not contain its fields', async () => {
  using folder = temporary();
  const { dir, base, tensors } = scopedGolden('loraplus-llama3');
  const recipe = (fields: object, name: string) =>
    parseRecipe({
      model: base,
      adapter: dir,
      method: { type: 'lora', ...fields },
      data: { train: batchFile(folder.path), format: 'batches' },
      train: { lr: 2e-3, threads: 1 },
      run: { dir: join(folder.path, name) },
    });
  const plus = { loraplus_lr_ratio: 8, loraplus_lr_embedding: 1e-3 };
  const { losses, adapter } = await runTraining({ recipe: recipe(plus, 'plus') }, () => {});
  const error = curveError(losses, tensors);
  assert.ok(error <= 1e-4, `the losses differ by ${error}`);
  const without = await runTraining({ recipe: recipe({}, 'plain') }, () => {});
  assert.ok(curveError(without.losses, tensors) > 1e-2);
  const config = readFileSync(join(adapter, 'adapter_config.json'), 'utf8');
  assert.doesNotMatch(config, /loraplus/);
});

test('a head that modules_to_save also names is trained once', () => {
  using _ = scope();
  const { base, dir, kind, rows } = readGolden('lora-llama-seqcls');
  using model = loadModel(base, taskOfAdapter(dir));
  const fields = { modules_to_save: ['score', 'norm'], target_modules: ['v_proj'] };
  using adapter = attachMethods(model, [{ type: 'lora', ...fields }], 0);
  lossOf(kind, outputs(model, kind, rows), rows).backward();
  const keys = [...gradientsOf(adapter.parameters).keys()].filter((key) => !/v_proj|norm/.test(key));
  assert.deepEqual(keys, ['score.weight']);
});

test('DoRA is refused for an embedding that shares its update with the head', () => {
  using model = loadModel(golden('models', 'llama3'));
  const fields = { target_modules: ['embed_tokens', 'v_proj'], ensure_weight_tying: true, use_dora: true };
  assert.throws(
    () => attachMethods(model, [{ type: 'lora', ...fields }], 0),
    /use_dora does not support embeddings and head that share/,
  );
});

test('initial values that keep the base are read as plain LoRA; adapters that change it are not converted or combined', () => {
  using _ = scope();
  using folder = temporary();
  const { dir, base, kind, rows } = readGolden('lora-bias-llama3');
  const as = (name: string, fields: object) => {
    const copy = join(folder.path, name);
    cpSync(dir, copy, { recursive: true });
    const file = join(copy, 'adapter_config.json');
    const config = JSON.parse(readFileSync(file, 'utf8')) as object;
    writeFileSync(file, JSON.stringify({ ...config, ...fields }));
    return copy;
  };
  const said = (adapter: string) => {
    using model = loadModel(base);
    using _adapter = loadAdapter(model, adapter);
    return logitsOfRows(model, kind, rows);
  };
  const plainly = said(dir);
  assert.deepEqual(said(as('eva', { init_lora_weights: 'eva', eva_config: { rho: 2, tau: 0.99 } })), plainly);
  assert.deepEqual(said(as('orthogonal', { init_lora_weights: 'orthogonal' })), plainly);
  assert.throws(() => said(as('corda', { init_lora_weights: 'corda' })), /init_lora_weights/);
  const rebasedToo = golden('peft', 'pissa-llama3');
  const to = join(folder.path, 'out');
  const why = /began with init_lora_weights: pissa/;
  assert.throws(() => convertAdapter(rebasedToo, to, 'mlx'), why);
  assert.throws(() => combineAdapters([rebasedToo, rebasedToo], to, { weights: [1, 1], how: 'linear' }), why);
});

test("DoRA's norms follow its update, whether a step or a write changes it", () => {
  using _ = scope();
  const { base, dir, kind, rows } = readGolden('dora-embed-llama2');
  using model = loadModel(base);
  using adapter = loadAdapter(model, dir);
  const fresh = () => {
    using folder = temporary();
    saveAdapter(model, adapter, join(folder.path, 'saved'), { base });
    using other = loadModel(base);
    using _same = loadAdapter(other, join(folder.path, 'saved'));
    return logitsOfRows(other, kind, rows);
  };
  const first = logitsOfRows(model, kind, rows);
  assert.deepEqual(logitsOfRows(model, kind, rows), first);
  curve(model, adapter, kind, { steps: 2 });
  const trained = logitsOfRows(model, kind, rows);
  assert.notDeepEqual(trained, first);
  assert.deepEqual(trained, fresh());
  noGrad(() => {
    for (const parameter of adapter.parameters.values()) ops.mulScalar_(parameter, 1.5);
  });
  assert.notDeepEqual(logitsOfRows(model, kind, rows), trained);
  assert.deepEqual(logitsOfRows(model, kind, rows), fresh());
});

test('the error of PiSSA by randomised SVD is close to that of the full SVD, closer with every iteration', () => {
  using _ = scope();
  const { base, tensors } = readGolden('pissa-llama3');
  const path = 'model.layers.0.mlp.down_proj';
  const norm = (weight: Tensor) => ops.vectorNorm(weight, 2).item();
  const least = norm(tensors.get(`init.base.${path}`)!);
  const left = [0, 2, 16].map((rounds) => {
    using model = loadModel(base);
    const config = { target_modules: ['down_proj'], r: 4, lora_alpha: 8, init_lora_weights: `pissa_niter_${rounds}` };
    using _adapter = attachMethods(model, [{ type: 'lora', ...config }], 3);
    return norm((unwrapped(moduleAt(model.root, path)) as Linear).weight) / least;
  }) as [number, number, number];
  assert.ok(left[0] > left[1] && left[1] > left[2] && left[2] >= 1 - 1e-6 && left[2] <= 1.01, `${left}`);
});

test('a PiSSA run that is killed and resumed saves the same plain LoRA, bit for bit', async () => {
  using folder = temporary();
  const recipe = (name: string) =>
    parseRecipe({
      model: golden('models', 'llama3'),
      method: { type: 'lora', target_modules: ['q_proj', 'up_proj'], init_lora_weights: 'pissa_niter_3', r: 4 },
      data: { train: batchFile(folder.path), format: 'batches' },
      train: { lr: 1e-3, threads: 1, steps: 8 },
      run: { dir: join(folder.path, name), checkpoint_every: 3 },
    });
  const whole = await runTraining({ recipe: recipe('whole') }, () => {});
  const killed = runTraining({ recipe: recipe('again') }, (event) => {
    if (event.type === 'step' && event.step === 5) throw new Error('killed');
  });
  await assert.rejects(killed, /killed/);
  const again = await runTraining({ recipe: recipe('again') }, () => {});
  assert.equal(again.resumedFrom, 3);
  assert.deepEqual(again.losses, whole.losses);
  sameFile(again.adapter, whole.adapter);
  const config = JSON.parse(readFileSync(join(whole.adapter, 'adapter_config.json'), 'utf8')) as Record<
    string,
    unknown
  >;
  assert.deepEqual([config.r, config.lora_alpha, config.init_lora_weights], [8, 16, true]);
});

test('LoftQ corrects the error of nf4 as PEFT does', () => {
  using _ = scope();
  const { tensors } = readTensors(golden('quant', 'bitsandbytes.safetensors'));
  const weight = tensors.get('weight.normal')!;
  const nf4 = 100;
  for (const rounds of [1, 3]) {
    const { a, b, quantized } = noGrad(() => loftq(weight, ops.quantize(weight, nf4), nf4, 4, 1, rounds));
    const values = noGrad(() => ops.dequantize(quantized, nf4));
    assert.ok(relativeError(numbers(values), numbers(tensors.get(`loftq.${rounds}.values`)!)) <= 1e-5);
    const product = (x: Tensor, y: Tensor) => numbers(noGrad(() => ops.mm(y, x)));
    const want = product(tensors.get(`loftq.${rounds}.A`)!, tensors.get(`loftq.${rounds}.B`)!);
    assert.ok(relativeError(product(a, b), want) <= 1e-4, `${rounds} rounds`);
    const residual = noGrad(() => ops.sub(ops.sub(weight, values), ops.mm(b, a)));
    const error = ops.vectorNorm(residual, 2).item() / tensors.get(`loftq.${rounds}.error`)!.item();
    assert.ok(Math.abs(error - 1) <= 1e-4, `the error after ${rounds} steps is ${error} times PEFT's`);
  }
});

/** The recorded steps as a training file. */
function batchFile(dir: string): string {
  const file = join(dir, 'batches.jsonl');
  const lines = readFileSync(golden('peft', 'batches.lm.jsonl'), 'utf8').trim().split('\n').slice(0, 20);
  writeFileSync(file, lines.map((line) => `${line}\n`).join(''));
  return file;
}

function scopedGolden(name: string) {
  using _ = scope();
  const { dir, base, tensors } = readGolden(name);
  return { dir, base, tensors: numbers(tensors.get('curve')!) };
}

test('every golden was compared', (t) => {
  t.diagnostic(JSON.stringify(counts));
  assert.deepEqual(counts, { logits: 32 * 2 + 4 * 4, gradients: 464, curves: 33, files: 36 });
});
