/** Virtual tokens compared with PEFT: prompt tuning (of one and of several tasks), prefix tuning and P-tuning. */
import assert from 'node:assert/strict';
import { cpSync, existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { loadAdapter, saveAdapter } from '../../src/adapters/index.ts';
import { startEngine } from '../../src/engine/index.ts';
import { openSafetensors, writeSafetensors } from '../../src/io/index.ts';
import { attachMethods, type MethodChoice } from '../../src/methods/index.ts';
import { loadModel } from '../../src/models/index.ts';
import type { Model } from '../../src/nn/index.ts';
import { scope } from '../../src/tensor/index.ts';
import { golden, integers, numbers, readTensors, relativeError, temporary } from '../support.ts';
import { curve, curveError, goldensOf, gradientsOf, logitsOfRows, lossOf, outputs, readGolden } from './peft.ts';

before(() => startEngine());

const cases = goldensOf(/^(prompt|prefix|p-tuning|multitask)-/);

/** Returns the adapter's key for a key of a golden, where an encoder's keys begin with `encoder.`. */
const keyOf = (name: string) => name.replace(/^encoder\./, 'prompt_encoder.').replace(/^base_model\./, '');

const counts = { logits: 0, gradients: 0, curves: 0, files: 0 };

test('there is a golden for every method on every family', () => assert.equal(cases.length, 28));

for (const name of cases) {
  test(`${name}: loading, logits, gradients, twenty steps and saving as in PEFT`, () => {
    using _ = scope();
    using folder = temporary();
    const { dir, base, kind, facts, rows, tensors } = readGolden(name);
    const trainable = Object.values(facts.trainable as Record<string, string>);
    const prompted = !name.startsWith('prefix');
    const near = (model: Model, what: string) => {
      logitsOfRows(model, kind, rows).forEach((got, r) => {
        const want = numbers(tensors.get(`logits.${r}`)!);
        // PEFT also computes logits for the prompt's tokens.
        const own = prompted && kind !== 'class' ? want.subarray(want.length - got.length) : want;
        const error = relativeError(got, own);
        assert.ok(error <= 2e-5, `${what}: the logits of row ${r} differ by ${error}`);
        counts.logits++;
      });
    };

    // PEFT's file alone has the encoder's output, not the encoder.
    using model = loadModel(base);
    const plain = logitsOfRows(model, kind, rows);
    {
      using adapter = loadAdapter(model, dir);
      near(model, 'as PEFT saved it');
      const names = [...adapter.parameters.keys()];
      assert.ok(names.includes('prompt_embeddings') && !names.some((key) => key.startsWith('prompt_encoder')));
      saveAdapter(model, adapter, join(folder.path, 'plain'), { base: facts.base as string });
      sameFiles(join(folder.path, 'plain'), dir, false);
      assert.ok(!existsSync(join(folder.path, 'plain', 'training.safetensors')));
    }
    assert.deepEqual(logitsOfRows(model, kind, rows), plain, 'detached, it restores the base bit for bit');

    // With the encoder in a file beside it, as Graft saves it.
    const whole = join(folder.path, 'whole');
    cpSync(dir, whole, { recursive: true });
    const encoder = [...tensors].filter(([key]) => key.startsWith('encoder.'));
    if (encoder.length > 0) {
      const entries = encoder.map(([key, t]) => ({
        name: keyOf(key),
        dtype: t.dtype,
        shape: t.shape,
        bytes: () => t.bytes(),
      }));
      writeSafetensors(join(whole, 'training.safetensors'), entries);
    }
    using adapter = loadAdapter(model, whole);
    assert.deepEqual(adapter.warnings, []);
    near(model, 'whole');

    const keys = trainable.map(keyOf);
    assert.deepEqual([...adapter.parameters.keys()].sort(), keys.sort());
    // In PEFT an answer may be among the virtual tokens, in Graft only in the row, so the losses differ.
    if (kind !== 'span') {
      const first = rows.slice(0, 1);
      const loss = lossOf(kind, outputs(model, kind, first), first);
      assert.ok(Math.abs(loss.item() / tensors.get('loss')!.item() - 1) <= 5e-6, `loss ${loss.item()}`);
      loss.backward();
      const gradients = gradientsOf(adapter.parameters);
      for (const key of trainable) {
        const error = relativeError(gradients.get(keyOf(key))!, numbers(tensors.get(`grad.${key}`)!));
        assert.ok(error <= 1e-4, `the gradient of ${key} differs by ${error}`);
        counts.gradients++;
      }
    }

    const saved = join(folder.path, 'saved');
    saveAdapter(model, adapter, saved, { base: facts.base as string });
    sameFiles(saved, dir, encoder.length > 0);
    {
      using second = loadModel(base);
      using again = loadAdapter(second, saved);
      assert.deepEqual([...again.parameters.keys()], [...adapter.parameters.keys()]);
      const [a, b] = [second, model].map((m) => logitsOfRows(m, kind, rows));
      assert.deepEqual(a, b, 'saved and loaded, it is the same bit for bit');
    }

    const wanted = tensors.get('curve');
    if (!wanted) return;
    const tasks = name.startsWith('multitask') && { taskOf: (step: number, row: number) => (step + row) % 3 };
    const error = curveError(curve(model, adapter, kind, { ...tasks }), numbers(wanted));
    assert.ok(error <= 1e-3, `the losses differ by ${error}`);
    counts.curves++;
  });
}

/** Compares keys, shapes and values of both files, and the configs except for versions and PEFT's list of heads. */
function sameFiles(saved: string, original: string, encoded: boolean): void {
  const [ours, theirs] = [saved, original].map((dir) => openSafetensors(join(dir, 'adapter_model.safetensors')));
  try {
    assert.deepEqual([...ours!.entries.keys()].sort(), [...theirs!.entries.keys()].sort());
    for (const [key, entry] of theirs!.entries) {
      const [a, b] = [new Float32Array(entry.bytes / 4), new Float32Array(entry.bytes / 4)];
      ours!.read(key, new Uint8Array(a.buffer));
      theirs!.read(key, new Uint8Array(b.buffer));
      assert.deepEqual(ours!.entries.get(key)!.shape, entry.shape);
      if (encoded && key === 'prompt_embeddings') assert.ok(relativeError(a, b) <= 2e-6, key);
      else assert.deepEqual(a, b, key);
    }
  } finally {
    for (const source of [ours!, theirs!]) source[Symbol.dispose]();
  }
  const [mine, peft] = [saved, original].map((dir) =>
    JSON.parse(readFileSync(join(dir, 'adapter_config.json'), 'utf8')),
  );
  for (const config of [mine, peft]) {
    delete config.peft_version;
    delete config.modules_to_save;
  }
  assert.deepEqual(mine, peft);
  counts.files++;
}

for (const name of ['prefix-text-llama3', 'prefix-text-qwen2', 'prefix-text-gpt2']) {
  test(`${name}: the keys and values of a text equal PEFT's`, () => {
    using _ = scope();
    const dir = golden('peft', name);
    const { base, tensors } = readGolden(name);
    const text = integers(tensors.get('text')!);
    const want = readTensors(join(dir, 'adapter_model.safetensors')).tensors.get('prompt_embeddings')!;
    using model = loadModel(base);
    const choice: MethodChoice = { type: 'prefix', num_virtual_tokens: 5, init_text: 'a text' };
    using adapter = attachMethods(model, [choice], 0, { encode: () => text });
    const start = adapter.parts[0]!.savedTensors!().get('prompt_embeddings')!;
    const error = relativeError(numbers(start), numbers(want));
    assert.ok(error <= 5e-6, `they differ by ${error}`);
  });
}

test('several tasks: initial values from a saved adapter, in PEFT’s three ways', () => {
  using _ = scope();
  const dir = golden('peft', 'multitask-llama3');
  const { tensors } = readTensors(join(dir, 'golden.safetensors'));
  using model = loadModel(golden('models', 'llama3'));
  let compared = 0;
  for (const [init, tasks] of [
    ['AVERAGE_SOURCE_TASKS', 1],
    ['EXACT_SOURCE_TASK', 1],
    ['ONLY_SOURCE_SHARED', 3],
  ] as const) {
    const choice: MethodChoice = {
      type: 'multitask-prompt',
      num_virtual_tokens: 4,
      num_ranks: 2,
      num_tasks: tasks,
      prompt_tuning_init: init,
      prompt_tuning_init_task: 1,
      prompt_tuning_init_state_dict_path: dir,
    };
    using adapter = attachMethods(model, [choice], 0);
    for (const [key, want] of tensors) {
      if (!key.startsWith(`init.${init}.`)) continue;
      const got = adapter.parameters.get(key.slice(`init.${init}.`.length))!;
      assert.ok(relativeError(numbers(got), numbers(want)) <= 2e-7, key);
      compared++;
    }
  }
  assert.equal(compared, 7);
});

test('every golden was compared', (t) => {
  t.diagnostic(JSON.stringify(counts));
  assert.deepEqual(counts, { logits: 112, gradients: 127, curves: 27, files: 56 });
});
