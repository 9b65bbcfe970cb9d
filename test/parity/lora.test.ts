import assert from 'node:assert/strict';
import { copyFileSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { loadAdapter, saveAdapter } from '../../src/adapters/index.ts';
import { startEngine } from '../../src/engine/index.ts';
import { openSafetensors } from '../../src/io/index.ts';
import { byPattern, type Candidate, lora, selectTargets, type TargetConfig } from '../../src/methods/index.ts';
import { loadModel, saveModel } from '../../src/models/index.ts';
import { type Model, outputOf, packTokens } from '../../src/nn/index.ts';
import { noGrad, ops, scope, Tensor } from '../../src/tensor/index.ts';
import { torchFile } from '../samples/torch.ts';
import { golden, integers, numbers, readTensors, relativeError, temporary } from '../support.ts';

before(() => startEngine());

const adapters = readdirSync(golden('lora'), { withFileTypes: true })
  .filter((e) => e.isDirectory())
  .map((e) => e.name);
const prefix = 'base_model.model.';

const logitsFor = (model: Model, ids: number[]) => noGrad(() => numbers(outputOf(model, packTokens([ids]))));

test('there is a golden for every kind of adapter', () => assert.equal(adapters.length, 12));

for (const name of adapters) {
  test(`${name}: loading, logits, gradients, merging and saving as in PEFT`, () => {
    using _ = scope();
    const dir = golden('lora', name);
    const facts = JSON.parse(readFileSync(join(dir, 'golden.json'), 'utf8'));
    const { tensors } = readTensors(join(dir, 'golden.safetensors'));
    using model = loadModel(golden('models', facts.base));
    const ids = [0, 1].map((r) => integers(tensors.get(`ids.${r}`)!));
    const untouched = logitsFor(model, ids[0]!);
    const adapter = loadAdapter(model, dir);
    assert.deepEqual(adapter.warnings, []);

    const attached = ids.map((row) => logitsFor(model, row));
    attached.forEach((got, r) => {
      const error = relativeError(got, numbers(tensors.get(`logits.${r}`)!));
      assert.ok(error <= 2e-5, `logits of row ${r} differ by ${error}`);
    });

    const labels = integers(tensors.get('labels')!);
    const targets = Tensor.from(BigInt64Array.from([...labels.slice(1), -100], BigInt));
    const predicted = labels.slice(1).filter((l) => l !== -100).length;
    const loss = ops.divScalar(model.lossSum(model.hidden(packTokens([ids[0]!])), targets), predicted);
    assert.ok(Math.abs(loss.item() / tensors.get('loss')!.item() - 1) <= 3e-6, `loss ${loss.item()}`);
    loss.backward();
    const wanted = [...tensors.keys()].filter((k) => k.startsWith('grad.')).map((k) => k.slice(5 + prefix.length));
    assert.deepEqual([...adapter.parameters.keys()].sort(), wanted.sort());
    for (const [key, parameter] of adapter.parameters) {
      const error = relativeError(
        numbers(ops.contiguous(parameter.grad!)),
        numbers(tensors.get(`grad.${prefix}${key}`)!),
      );
      assert.ok(error <= 5e-5, `gradient of ${key} differs by ${error}`);
    }

    const out = mkdtempSync(join(tmpdir(), 'graft-lora-'));
    try {
      adapter.merge!();
      for (const [r, row] of ids.entries()) {
        assert.ok(relativeError(logitsFor(model, row), attached[r]!) <= 1e-5, 'merged equals attached');
      }
      saveModel(model, join(out, 'model'), golden('models', facts.base));
      using whole = loadModel(join(out, 'model'));
      ids.forEach((row, r) => {
        const error = relativeError(logitsFor(whole, row), numbers(tensors.get(`logits.${r}`)!));
        assert.ok(error <= 2e-5, `the merged model differs by ${error} on row ${r}`);
      });
      adapter.unmerge!();
      assert.deepEqual(logitsFor(model, ids[0]!), attached[0], 'unmerged equals attached, bit for bit');

      saveAdapter(model, adapter, join(out, 'saved'), { base: facts.base });
      using saved = openSafetensors(join(out, 'saved', 'adapter_model.safetensors'));
      using original = openSafetensors(join(dir, 'adapter_model.safetensors'));
      assert.deepEqual([...saved.entries.keys()].sort(), [...original.entries.keys()].sort());
      for (const [key, entry] of original.entries) {
        const [a, b] = [new Uint8Array(entry.bytes), new Uint8Array(entry.bytes)];
        original.read(key, a);
        saved.read(key, b);
        assert.deepEqual(a, b, key);
      }
    } finally {
      rmSync(out, { recursive: true });
    }

    adapter.detach();
    assert.deepEqual(logitsFor(model, ids[0]!), untouched, 'detached restores the base, bit for bit');
  });
}

test('a pickled adapter of PEFT is loaded with the same values, and none of its code is run', () => {
  using _ = scope();
  using out = temporary();
  const dir = golden('lora', 'llama3-rslora');
  const { tensors } = readTensors(join(dir, 'adapter_model.safetensors'));
  const stored = new Map([...tensors].map(([name, tensor]) => [name, { shape: tensor.shape, bytes: tensor.bytes() }]));
  copyFileSync(join(dir, 'adapter_config.json'), join(out.path, 'adapter_config.json'));
  writeFileSync(join(out.path, 'adapter_model.bin'), torchFile(stored));
  using model = loadModel(golden('models', 'llama3'));
  const [pickled, safe] = [out.path, dir].map((from) => {
    using _adapter = loadAdapter(model, from);
    return logitsFor(model, [3, 1, 4, 1, 5]);
  });
  assert.deepEqual(pickled, safe);
});

test("target selection equals PEFT's on every recorded case", () => {
  const { models, cases } = JSON.parse(readFileSync(golden('lora', 'targets.json'), 'utf8')) as {
    models: Record<string, { modules: [string, string][]; head?: string; defaults?: string[] }>;
    cases: {
      name: string;
      model: string;
      config: TargetConfig & Record<string, unknown>;
      error?: string;
      matched?: Record<string, [number, number, number]>;
    }[];
  };
  const defaults: Record<string, string[]> = { gpt2: ['c_attn'], 'bert-cls': ['query', 'value'] };
  let compared = 0;
  for (const c of cases) {
    // The tasks handle heads; the method refuses lora_bias with DoRA.
    if ('task_type' in c.config || c.config.lora_bias) continue;
    const candidates: Candidate[] = models[c.model]!.modules.map(([path, kind]) => ({
      path,
      kind: kind === 'Linear' || kind === 'Conv1D' ? 'linear' : kind === 'Embedding' ? 'embedding' : 'other',
      head: path === models[c.model]!.head,
    }));
    const select = () => {
      const config = lora.config.parse(c.config);
      const selected = selectTargets(candidates, config, defaults[c.model] ?? ['q_proj', 'v_proj']);
      return Object.fromEntries(
        selected.map(({ path }) => {
          const rank = byPattern(config.rank_pattern, path, config.r);
          const alpha = byPattern(config.alpha_pattern, path, config.lora_alpha);
          return [path, [rank, alpha, alpha / (config.use_rslora ? Math.sqrt(rank) : rank)]];
        }),
      );
    };
    if (c.error) assert.throws(select, `${c.name}: PEFT refuses`);
    else assert.deepEqual(select(), c.matched, c.name);
    compared++;
  }
  assert.ok(compared >= 100, `${compared} cases`);
});

test('all-linear and the default targets are saved as the names that they stand for', () => {
  using model = loadModel(golden('models', 'llama3'));
  const saved = (target: string | null) => {
    using adapter = lora.attach(model, lora.config.parse({ target_modules: target }), 0);
    return adapter.savedConfig!().target_modules;
  };
  const every = ['down_proj', 'gate_proj', 'k_proj', 'o_proj', 'q_proj', 'up_proj', 'v_proj'];
  assert.deepEqual(saved('all-linear'), every);
  assert.deepEqual(saved(null), ['q_proj', 'v_proj']);
});
