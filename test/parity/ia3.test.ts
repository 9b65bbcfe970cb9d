/** (IA)³ compared with PEFT. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { loadAdapter, saveAdapter, taskOfAdapter } from '../../src/adapters/index.ts';
import { startEngine } from '../../src/engine/index.ts';
import { type AttachedAdapter, attachMethods } from '../../src/methods/index.ts';
import { loadModel } from '../../src/models/index.ts';
import { scope } from '../../src/tensor/index.ts';
import { golden, numbers, relativeError, temporary } from '../support.ts';
import {
  comparedLogits,
  curve,
  curveError,
  goldensOf,
  gradientsOf,
  logitsOfRows,
  lossOf,
  mergesAndBack,
  outputs,
  prefix,
  readGolden,
  savesAsPeft,
} from './peft.ts';

before(() => startEngine());

const cases = goldensOf(/^ia3-/);
const counts = { logits: 0, gradients: 0, curves: 0, files: 0 };

test('there is a golden for four bases', () => assert.equal(cases.length, 4));

for (const name of cases) {
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
    lossOf(kind, outputs(model, kind, rows.slice(0, 1)), rows.slice(0, 1)).backward();
    const gradients = gradientsOf(adapter.parameters);
    for (const [key, got] of gradients) {
      const error = relativeError(got, numbers(tensors.get(`grad.${prefix}${key}`)!));
      assert.ok(error <= Math.max(tolerance.grad, 5e-5), `the gradient of ${key} differs by ${error}`);
      counts.gradients++;
    }
    assert.equal(gradients.size, [...tensors.keys()].filter((key) => key.startsWith('grad.')).length);

    mergesAndBack(model, adapter, want, attached);
    savesAsPeft(model, adapter, want, join(folder.path, 'saved'));
    counts.files++;
    const error = curveError(curve(model, adapter, kind), numbers(tensors.get('curve')!));
    assert.ok(error <= 1e-4, `the losses of twenty steps differ by ${error}`);
    counts.curves++;
    adapter.detach();
    assert.deepEqual(logitsOfRows(model, kind, rows), untouched, 'detached restores the base, bit for bit');
  });
}

test('the default targets are keys, values and the second projection, and PEFT can read their saved names', () => {
  const saved = (...base: string[]) => {
    using model = loadModel(golden(...base));
    using adapter = attachMethods(model, [{ type: 'ia3' }], 0);
    const { target_modules, feedforward_modules } = adapter.parts[0]!.savedConfig!();
    return [target_modules, feedforward_modules, adapter.parameters.size];
  };
  assert.deepEqual(saved('models', 'llama3'), [['down_proj', 'k_proj', 'v_proj'], ['down_proj'], 9]);
  const second = [0, 1].map((i) => `transformer.h.${i}.mlp.c_proj`);
  const first = [0, 1].flatMap((i) => [`transformer.h.${i}.attn.c_attn`, second[i]!]);
  assert.deepEqual(saved('families', 'gpt2'), [first, second, 4]);
});

test('inputs that are named by whole paths are the same after saving, where targets are not named so', () => {
  using dir = temporary();
  const base = golden('models', 'llama3');
  const own = 'model.layers.1.mlp.down_proj';
  const choice = { type: 'ia3', target_modules: 'all-linear', feedforward_modules: [own] } as const;
  const scaledInputs = (adapter: AttachedAdapter) =>
    [...adapter.parameters].filter(([, l]) => l.size(0) === 1).map(([name]) => name);
  using model = loadModel(base);
  const adapter = attachMethods(model, [choice], 0);
  saveAdapter(model, adapter, join(dir.path, 'a'), { base });
  const [inputs, count] = [scaledInputs(adapter), adapter.parameters.size];
  adapter.detach();
  using again = loadAdapter(model, join(dir.path, 'a'));
  assert.equal(inputs.length, 1);
  assert.deepEqual([scaledInputs(again), again.parameters.size], [inputs, count]);
});

test('a learning rate that is too low is warned about', () => {
  using model = loadModel(golden('models', 'llama3'));
  using adapter = attachMethods(model, [{ type: 'ia3' }], 0);
  assert.match(adapter.advise!(2e-4).join(), /hardly change at a learning rate of 0\.0002/);
  assert.deepEqual(adapter.advise!(3e-3), []);
});

test('every golden was compared', (t) => {
  t.diagnostic(JSON.stringify(counts));
  assert.deepEqual(counts, { logits: 8, gradients: 29, curves: 4, files: 4 });
});
