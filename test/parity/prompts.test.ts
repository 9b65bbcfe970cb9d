/** Virtual tokens against PEFT: prompt tuning (of one and several tasks), prefix tuning and P-tuning. */
import assert from 'node:assert/strict';
import { cpSync, existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { startEngine } from '../../src/engine/index.ts';
import { loadAdapter, saveAdapter } from '../../src/export/index.ts';
import { openSafetensors, writeSafetensors } from '../../src/io/index.ts';
import { type Attached, attachMethods, type MethodChoice } from '../../src/methods/index.ts';
import { loadModel } from '../../src/models/index.ts';
import { type Model, outputOf, packTokens } from '../../src/nn/index.ts';
import { adamw } from '../../src/optim/index.ts';
import { noGrad, ops, scope, Tensor } from '../../src/tensor/index.ts';
import { golden, integers, numbers, readTensors, relativeError, temporary } from '../support.ts';

before(() => startEngine());

const cases = readdirSync(golden('peft'))
  .filter((name) => /^(prompt|prefix|p-tuning|multitask)-/.test(name))
  .sort();

type Kind = 'lm' | 'class' | 'tags' | 'span';

interface Facts {
  readonly base: string;
  readonly kind: Kind;
  readonly trainable: Readonly<Record<string, string>>;
}

interface Sample {
  readonly ids: readonly number[];
  readonly labels: readonly number[];
  readonly task?: number;
}

/** The adapter's key of a golden one: what an encoder has stands under `encoder.` there. */
const keyOf = (name: string) => name.replace(/^encoder\./, 'prompt_encoder.').replace(/^base_model\./, '');

const int64 = (values: readonly number[]) => Tensor.from(BigInt64Array.from(values, BigInt));

/** What the head says of each row, all rows packed: [n, L] as one tensor a row. */
function outputs(model: Model, kind: Kind, rows: readonly Sample[]): Tensor[] {
  const tasks = rows.flatMap(({ task }) => (task === undefined ? [] : [task]));
  const packed = { ...packTokens(rows.map(({ ids }) => ids)), ...(tasks.length > 0 && { tasks }) };
  const all = outputOf(model, packed);
  return rows.map((row, r) =>
    kind === 'class' ? ops.narrow(all, 0, r, 1) : ops.narrow(all, 0, packed.rowStarts[r]!, row.ids.length),
  );
}

/** Sum of the cross-entropies, and their number. */
function lossOf(kind: Kind, logits: readonly Tensor[], rows: readonly Sample[]): { sum: Tensor; units: number } {
  const [picked, targets]: [Tensor[], number[]] = [[], []];
  rows.forEach(({ labels }, r) => {
    labels.forEach((label, i) => {
      const at = kind === 'lm' ? i - 1 : i;
      if (label < 0 || at < 0) return;
      picked.push(ops.narrow(logits[r]!, 0, at, 1));
      targets.push(label);
    });
  });
  const likely = ops.gather(ops.logSoftmax(ops.cat(picked), -1), 1, ops.unsqueeze(int64(targets), 1));
  return { sum: ops.neg(ops.sum(likely)), units: targets.length };
}

/** Losses of AdamW steps at 1e-2; the weights are changed. */
function curve(model: Model, { parameters }: Attached, kind: Kind, multitask: boolean): number[] {
  const steps = readFileSync(golden('peft', `batches.${kind}.jsonl`), 'utf8')
    .trim()
    .split('\n')
    .slice(0, 20);
  using optimizer = adamw(parameters, { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0 });
  return steps.map((line, i) => {
    using _ = scope();
    const rows = (JSON.parse(line) as { rows: { ids: number[]; labels: number[] | number }[] }).rows.map(
      ({ ids, labels }, j): Sample => ({ ids, labels: [labels].flat(), ...(multitask && { task: (i + j) % 3 }) }),
    );
    const { sum, units } = lossOf(kind, outputs(model, kind, rows), rows);
    const loss = ops.divScalar(sum, units);
    loss.backward();
    optimizer.step(1e-2);
    for (const parameter of parameters.values()) parameter.grad = undefined;
    return loss.item();
  });
}

const counts = { logits: 0, gradients: 0, curves: 0, files: 0 };

test('there is a golden for every method on every family', () => assert.equal(cases.length, 28));

for (const name of cases) {
  test(`${name}: read, logits, gradients, twenty steps, save: as PEFT`, () => {
    using _ = scope();
    using folder = temporary();
    const dir = golden('peft', name);
    const facts = JSON.parse(readFileSync(join(dir, 'golden.json'), 'utf8')) as Facts;
    const { tensors } = readTensors(join(dir, 'golden.safetensors'));
    const { kind } = facts;
    const rows = [0, 1].map((r): Sample => {
      const task = tensors.get(`task.${r}`)?.item();
      const [ids, labels] = [integers(tensors.get(`ids.${r}`)!), integers(tensors.get(`labels.${r}`)!)];
      return { ids, labels, ...(task !== undefined && { task }) };
    });
    const prompted = !name.startsWith('prefix');
    const near = (model: Model, what: string) => {
      noGrad(() => outputs(model, kind, rows)).forEach((got, r) => {
        const want = numbers(tensors.get(`logits.${r}`)!);
        // PEFT gives logits for a prompt's own tokens too.
        const own = prompted && kind !== 'class' ? want.subarray(want.length - got.numel) : want;
        const error = relativeError(numbers(ops.contiguous(got)), own);
        assert.ok(error <= 2e-5, `${what}: the logits of row ${r} differ by ${error}`);
        counts.logits++;
      });
    };

    // PEFT's file alone: of an encoder it has what that made.
    using model = loadModel(golden(...facts.base.split('/')));
    const plain = noGrad(() => outputs(model, kind, rows).map((t) => numbers(ops.contiguous(t))));
    {
      using adapter = loadAdapter(model, dir);
      near(model, 'as PEFT saved it');
      const names = [...adapter.parameters.keys()];
      assert.ok(names.includes('prompt_embeddings') && !names.some((key) => key.startsWith('prompt_encoder')));
      saveAdapter(model, adapter, join(folder.path, 'plain'), { base: facts.base });
      sameFiles(join(folder.path, 'plain'), dir, false);
      assert.ok(!existsSync(join(folder.path, 'plain', 'training.safetensors')));
    }
    assert.deepEqual(
      noGrad(() => outputs(model, kind, rows).map((t) => numbers(ops.contiguous(t)))),
      plain,
      'detached it leaves the base, bit for bit',
    );

    // With the encoder beside it, as Graft keeps it.
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

    const keys = Object.values(facts.trainable).map(keyOf);
    assert.deepEqual([...adapter.parameters.keys()].sort(), keys.sort());
    // PEFT lets an answer lie among the virtual tokens; here it lies in the row, and the losses differ by that.
    if (kind !== 'span') {
      const first = rows.slice(0, 1);
      const { sum, units } = lossOf(kind, outputs(model, kind, first), first);
      const loss = ops.divScalar(sum, units);
      assert.ok(Math.abs(loss.item() / tensors.get('loss')!.item() - 1) <= 5e-6, `loss ${loss.item()}`);
      loss.backward();
      for (const key of Object.values(facts.trainable)) {
        const parameter = adapter.parameters.get(keyOf(key))!;
        const got = numbers(ops.contiguous(parameter.grad!));
        parameter.grad = undefined;
        const error = relativeError(got, numbers(tensors.get(`grad.${key}`)!));
        assert.ok(error <= 1e-4, `the gradient of ${key} differs by ${error}`);
        counts.gradients++;
      }
    }

    const saved = join(folder.path, 'saved');
    saveAdapter(model, adapter, saved, { base: facts.base });
    sameFiles(saved, dir, encoder.length > 0);
    {
      using second = loadModel(golden(...facts.base.split('/')));
      using again = loadAdapter(second, saved);
      assert.deepEqual([...again.parameters.keys()], [...adapter.parameters.keys()]);
      const [a, b] = [second, model].map((m) =>
        noGrad(() => outputs(m, kind, rows).map((t) => numbers(ops.contiguous(t)))),
      );
      assert.deepEqual(a, b, 'saved and read again it is the same, bit for bit');
    }

    const wanted = tensors.get('curve');
    if (!wanted) return;
    const losses = curve(model, adapter, kind, name.startsWith('multitask'));
    numbers(wanted).forEach((value, step) => {
      const error = Math.abs(losses[step]! / value - 1);
      assert.ok(error <= 1e-3, `the loss of step ${step + 1} is ${losses[step]}, PEFT's ${value}`);
    });
    counts.curves++;
  });
}

/** Keys, shapes and values of both files, and the config but for versions and PEFT's list of heads. */
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
  test(`${name}: the keys and values of a text are those that PEFT takes`, () => {
    using _ = scope();
    const dir = golden('peft', name);
    const { base } = JSON.parse(readFileSync(join(dir, 'golden.json'), 'utf8')) as Facts;
    const text = integers(readTensors(join(dir, 'golden.safetensors')).tensors.get('text')!);
    const want = readTensors(join(dir, 'adapter_model.safetensors')).tensors.get('prompt_embeddings')!;
    using model = loadModel(golden(...base.split('/')));
    const choice: MethodChoice = { type: 'prefix', num_virtual_tokens: 5, init_text: 'a text' };
    using adapter = attachMethods(model, [choice], 0, { encode: () => text });
    const error = relativeError(numbers(adapter.parameters.get('prompt_embeddings')!), numbers(want));
    assert.ok(error <= 5e-6, `they differ by ${error}`);
  });
}

test('several tasks: PEFT’s three ways to begin from a saved adapter', () => {
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

test('so much was compared', (t) => {
  t.diagnostic(JSON.stringify(counts));
  assert.deepEqual(counts, { logits: 112, gradients: 127, curves: 27, files: 56 });
});
