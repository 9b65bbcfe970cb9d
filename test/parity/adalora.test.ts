/** AdaLoRA compared with PEFT: thirty steps with pruning, the ranks that each step keeps, and the pruned adapter. */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { loadAdapter, saveAdapter, savedAdapters, taskOfAdapter } from '../../src/adapters/index.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { attachMethods } from '../../src/methods/index.ts';
import { loadModel } from '../../src/models/index.ts';
import { noGrad, ops, scope } from '../../src/tensor/index.ts';
import { parseRecipe, runTraining, type TrainEvent } from '../../src/train/index.ts';
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
} from './peft.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
});

interface Step {
  readonly step: number;
  readonly kept?: Readonly<Record<string, readonly number[]>>;
  readonly left: readonly number[];
}

const cases = goldensOf(/^adalora-/);
const counts = { steps: 0, choices: 0, gradients: 0, tensors: 0 };

test('there is a golden for three bases', () => assert.equal(cases.length, 3));

for (const name of cases) {
  test(`${name}: thirty steps from PEFT's initial values: losses, ranks and the pruned adapter equal PEFT's`, () => {
    using _ = scope();
    using folder = temporary();
    const { dir, base, kind, rows, facts, tensors } = readGolden(name);
    using model = loadModel(base, taskOfAdapter(dir));
    const untouched = logitsOfRows(model, kind, rows);
    const raw = JSON.parse(readFileSync(join(dir, 'adapter_config.json'), 'utf8')) as Record<string, unknown>;
    const fields = ['init_r', 'target_r', 'tinit', 'tfinal', 'deltaT', 'total_step', 'lora_alpha', 'orth_reg_weight'];
    const config = Object.fromEntries([...fields, 'beta1', 'beta2', 'target_modules'].map((key) => [key, raw[key]]));
    const adapter = attachMethods(model, [{ type: 'adalora', ...config }], 0);
    noGrad(() => {
      for (const [key, tensor] of adapter.parameters) ops.copy_(tensor, tensors.get(`start.${prefix}${key}`)!);
    });
    const records = facts.budget as readonly Step[];
    const losses = curve(model, adapter, kind, {
      steps: 30,
      after(step) {
        const { kept, left } = records[step]!;
        if (kept) {
          const { rank_pattern } = adapter.parts[0]!.savedConfig!() as { rank_pattern: Record<string, boolean[]> };
          const chosen = Object.entries(rank_pattern).map(([key, ranks]) => [key, ranks.map(Number)]);
          assert.deepEqual(Object.fromEntries(chosen), kept, `step ${step + 1}`);
          counts.choices++;
        }
        const values = [...adapter.parameters].filter(([key]) => key.endsWith('.lora_E'));
        assert.deepEqual(
          values.map(([, e]) => numbers(e).filter((x) => x !== 0).length),
          left,
          `step ${step + 1}`,
        );
        counts.steps++;
      },
    });
    const error = curveError(losses, numbers(tensors.get('curve')!));
    assert.ok(error <= 1e-4, `the losses differ by ${error}`);

    const saved = join(folder.path, 'saved');
    saveAdapter(model, adapter, saved, { base });
    const whole = logitsOfRows(model, kind, rows);
    adapter.detach();
    assert.deepEqual(logitsOfRows(model, kind, rows), untouched, 'detached restores the base, bit for bit');
    const [got, want] = [saved, dir].map((d) => readTensors(join(d, 'adapter_model.safetensors')).tensors);
    assert.deepEqual([...got!.keys()].sort(), [...want!.keys()].sort());
    for (const [key, tensor] of want!) {
      assert.deepEqual(got!.get(key)!.shape, tensor.shape, key);
      const error = relativeError(numbers(got!.get(key)!), numbers(tensor));
      assert.ok(error <= 1e-3, `${key} differs by ${error}`);
      counts.tensors++;
    }
    const differing = differingFields(saved, dir).filter((field) => field !== 'modules_to_save' || kind === 'lm');
    assert.deepEqual(differing, ['r'], 'PEFT writes its own default');
    using cut = loadAdapter(model, saved);
    logitsOfRows(model, kind, rows).forEach((row, r) => {
      assert.ok(relativeError(row, whole[r]!) <= 1e-5, 'cut on disk equals masked in memory');
    });
    assert.equal(cut.afterStep!(0), undefined, 'cut ranks stay as they are');
  });

  test(`${name}: PEFT's pruned adapter: logits, gradients with the orthogonality term, merging, saving`, () => {
    using _ = scope();
    using folder = temporary();
    const want = readGolden(name);
    const { dir, base, kind, rows, tensors, tolerance } = want;
    using model = loadModel(base, taskOfAdapter(dir));
    using adapter = loadAdapter(model, dir);
    const attached = comparedLogits(model, want);
    const loss = ops.add(
      lossOf(kind, outputs(model, kind, rows.slice(0, 1)), rows.slice(0, 1)),
      adapter.regularisation!(),
    );
    assert.ok(Math.abs(loss.item() / tensors.get('loss')!.item() - 1) <= 3e-6, `loss ${loss.item()}`);
    loss.backward();
    for (const [key, got] of gradientsOf(adapter.parameters)) {
      const error = relativeError(got, numbers(tensors.get(`grad.${prefix}${key}`)!));
      assert.ok(error <= Math.max(tolerance.grad, 5e-5), `the gradient of ${key} differs by ${error}`);
      counts.gradients++;
    }
    mergesAndBack(model, adapter, want, attached);
    saveAdapter(model, adapter, join(folder.path, 'saved'), { base });
    sameFile(join(folder.path, 'saved'), dir);
  });
}

test('a run that is killed and resumed prunes the same ranks and ends with the same adapter, bit for bit', async () => {
  using dir = temporary();
  const data = join(dir.path, 'rows.jsonl');
  const ids = (r: number) => Array.from({ length: 4 + ((r * 11) % 17) }, (_, i) => 3 + ((r * 13 + i * 7) % 60));
  writeFileSync(data, Array.from({ length: 16 }, (_, r) => `${JSON.stringify({ ids: ids(r) })}\n`).join(''));
  const recipe = (name: string) =>
    parseRecipe({
      model: golden('models', 'llama3'),
      method: { type: 'adalora', init_r: 4, target_r: 2, tinit: 2, tfinal: 3, deltaT: 2 },
      data: { train: data, format: 'tokens' },
      train: { lr: 1e-2, steps: 12, batch_size: 4, micro_tokens: 64, threads: 1 },
      run: { dir: join(dir.path, name), checkpoint_every: 5 },
    });
  const penalties: number[] = [];
  const whole = await runTraining({ recipe: recipe('whole') }, (event) => {
    if (event.type === 'step') penalties.push(event.penalty!);
  });
  assert.equal(penalties.length, 12);
  assert.ok(
    penalties.every((penalty, i) => penalty > 0 && penalty < whole.losses[i]!),
    'a part of every loss',
  );
  const kill = (event: TrainEvent) => {
    if (event.type === 'step' && event.step === 8) throw new Error('killed');
  };
  await assert.rejects(runTraining({ recipe: recipe('again') }, kill), /killed/);
  const again = await runTraining({ recipe: recipe('again') }, () => {});
  assert.equal(again.resumedFrom, 5);
  assert.deepEqual(again.losses, whole.losses);
  sameFile(again.adapter, whole.adapter);
  const read = (d: string) =>
    JSON.parse(readFileSync(join(d, 'adapter_config.json'), 'utf8')) as Record<string, unknown>;
  const { rank_pattern, total_step } = read(whole.adapter) as { rank_pattern: object; total_step: number };
  assert.deepEqual([total_step, read(again.adapter).rank_pattern], [12, rank_pattern]);
  const left = Object.values(rank_pattern).flat().filter(Boolean).length;
  assert.equal(left, 2 * Object.keys(rank_pattern).length);
});

test('frozen below another method, it keeps its ranks and adds nothing to the loss', () => {
  using dir = temporary();
  using model = loadModel(golden('models', 'llama3'));
  const config = { type: 'adalora', init_r: 4, target_r: 1, total_step: 3, init_lora_weights: false } as const;
  {
    using adapter = attachMethods(model, [config], 1);
    saveAdapter(model, adapter, join(dir.path, 'lower'), { base: 'b' });
  }
  const lower = { type: 'adalora', adapter: join(dir.path, 'lower'), train: false } as const;
  using stack = attachMethods(model, [lower, { type: 'ia3' }], 1, savedAdapters(model));
  const before = [...stack.parts[0]!.parameters].map(([, tensor]) => numbers(tensor));
  assert.equal(stack.regularisation, undefined);
  for (let step = 0; step < 3; step++) {
    stack.beforeStep?.(step, 3);
    stack.afterStep?.(step);
  }
  assert.deepEqual(
    [...stack.parts[0]!.parameters].map(([, tensor]) => numbers(tensor)),
    before,
  );
  assert.equal(stack.parameters.size, 9);
});

test('every golden was compared', (t) => {
  t.diagnostic(JSON.stringify(counts));
  assert.deepEqual(counts, { steps: 90, choices: 21, gradients: 35, tensors: 38 });
});
