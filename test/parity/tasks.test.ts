/** Tasks against transformers' losses and gradients (tools/golden/make_families.py) and PEFT's training (make_peft.py). */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { loadAdapter, taskOfAdapter } from '../../src/adapters/index.ts';
import { type Example, pack, type Row } from '../../src/data/index.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { readJsonObject } from '../../src/io/index.ts';
import { headOf, loadModel } from '../../src/models/index.ts';
import { Linear, type Model, namedModules, namedTensors } from '../../src/nn/index.ts';
import { measure, predict, type Task, taskOf, taskRows, tokensOf } from '../../src/tasks/index.ts';
import { noGrad, ops, scope, type Tensor } from '../../src/tensor/index.ts';
import { parseRecipe, runTraining } from '../../src/train/index.ts';
import { golden, integers, numbers, readTensors, relativeError, temporary } from '../support.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
});

type Tensors = ReadonlyMap<string, Tensor>;

/** Rows of a golden, through the task that the model was loaded for. */
function goldenRows(model: Model, task: Task, tensors: Tensors): Row[] {
  const count = [...tensors.keys()].filter((k) => /^(ids|pixels)\.\d+$/.test(k)).length;
  const labelsOf = (r: number) => {
    const labels = tensors.get(`labels.${r}`) ?? tensors.get('labels')!;
    const values = labels.dtype === 'int64' ? integers(labels) : Array.from(numbers(labels));
    return labels.shape.length === 0 ? values[0]! : values;
  };
  const examples = Array.from({ length: count }, (_, r): { example: Example; place: string } => {
    const place = `row ${r}`;
    if (model.image) return { example: { kind: 'image', image: r, label: labelsOf(r) as number }, place };
    const types = tensors.get(`token_types.${r}`);
    const ids = integers(tensors.get(`ids.${r}`)!);
    return { example: { kind: 'tokens', ids, labels: labelsOf(r), ...(types && { types: integers(types) }) }, place };
  });
  return taskRows(task, examples, {
    tokenizer: undefined,
    chat: undefined,
    vocabSize: model.vocabSize,
    maxLength: 64,
    trainOn: 'all',
    stride: 8,
    imageTokens: model.image?.tokens,
    pixels: (example) => numbers(tensors.get(`pixels.${(example as { image: number }).image}`)!),
  }).rows;
}

const lossOf = (model: Model, task: Task, rows: readonly Row[]): Tensor => {
  const batch = pack(rows);
  return ops.divScalar(task.lossSum(model, model.hidden(tokensOf(model, batch)), batch), task.units(batch));
};

const tasksOf = (name: string): { tensors: Tensors; tolerance: Record<string, number> } => {
  const { tensors, metadata } = readTensors(golden('families', name, 'golden.safetensors'));
  return { tensors, tolerance: JSON.parse(String(metadata.get('provenance'))).tolerance };
};

/** The models whose rows have a label and a loss each: not language models, and not BERT without a head. */
const withHead = readdirSync(golden('families'))
  .filter((name) => !['causal-lm', 'embedding'].includes(headOf(golden('families', name)).name))
  .sort();

test('every task of labelled rows has a model', () => {
  const ends = ['seqcls', 'regression', 'multilabel', 'tokcls', 'qa'];
  for (const end of ends)
    assert.ok(
      withHead.some((name) => name.endsWith(`-${end}`)),
      end,
    );
  assert.ok(withHead.length >= 20, `${withHead.length} models`);
});

for (const name of withHead) {
  test(`${name}: losses of every row and all gradients, through the task, equal transformers' float64`, () => {
    using _ = scope();
    using model = loadModel(golden('families', name));
    const task = taskOf(model.task);
    const { tensors, tolerance } = tasksOf(name);
    const rows = goldenRows(model, task, tensors);
    const limit = Math.max(tolerance.loss!, 2e-6);
    const losses = rows.map((_, r) => tensors.get(`loss.${r}`)!.item());
    noGrad(() => {
      rows.forEach((row, r) => {
        const got = lossOf(model, task, [row]).item();
        assert.ok(Math.abs(got / losses[r]! - 1) <= limit, `loss of row ${r} is ${got}, not ${losses[r]}`);
      });
      // Several rows: the mean over all that is counted, which for tags are tokens.
      const units = rows.map((row) => task.units(pack([row])));
      const all = losses.reduce((sum, loss, r) => sum + loss * units[r]!, 0) / units.reduce((a, b) => a + b);
      const measured = measure(model, task, [pack(rows)], rows);
      assert.ok(Math.abs(measured.loss / all - 1) <= 4 * limit, `${measured.loss}, not ${all}`);
      assert.ok(measured.metrics.length > 0 || model.task.name === 'question-answering');
      assert.equal(predict(model, task, [pack(rows)], rows).length, rows.length);
    });

    const parameters = new Map([...namedTensors(model.root)].map(([key, t]) => [model.fileKey?.(key) ?? key, t]));
    for (const tensor of parameters.values()) tensor.requiresGrad = true;
    lossOf(model, task, [rows[0]!]).backward();
    const turned = new Set<string>();
    for (const [path, m] of namedModules(model.root))
      if (m instanceof Linear && m.transposed) turned.add(`${path}.weight`);
    const wanted = [...tensors.keys()].filter((k) => k.startsWith('grad.'));
    assert.ok(wanted.length > 20);
    for (const key of wanted) {
      const grad = parameters.get(key.slice(5))!.grad!;
      const got = numbers(turned.has(key.slice(5)) ? ops.contiguous(ops.t(grad)) : grad);
      const want = numbers(tensors.get(key)!);
      const nothing = want.every((x) => x === 0);
      const error = nothing ? Math.max(...got.map(Math.abs)) : relativeError(got, want);
      assert.ok(error <= (nothing ? 1e-5 : tolerance.grad!), `${key} differs by ${error}`);
    }
  });
}

interface Case {
  base: string;
  kind: string;
  provenance: { tolerance: Record<string, number>; loss: number };
}

const caseOf = (name: string) => readJsonObject(golden('peft', name, 'golden.json')) as unknown as Case;
const peft = readdirSync(golden('peft'))
  .filter(
    (name) => /^lora-/.test(name) && existsSync(golden('peft', name, 'golden.json')) && caseOf(name).kind !== 'lm',
  )
  .sort();

test('eleven LoRA adapters with a head', () => assert.equal(peft.length, 11));

for (const name of peft) {
  const { base, kind, provenance } = caseOf(name);
  const { tolerance } = provenance;
  test(`${name}: loss and gradients of adapter and head equal PEFT's`, () => {
    using _ = scope();
    using model = loadModel(golden(base), taskOfAdapter(golden('peft', name)));
    using adapter = loadAdapter(model, golden('peft', name));
    const task = taskOf(model.task);
    const { tensors } = readTensors(golden('peft', name, 'golden.safetensors'));
    const rows = goldenRows(model, task, tensors);
    const loss = lossOf(model, task, [rows[0]!]);
    assert.ok(Math.abs(loss.item() / tensors.get('loss')!.item() - 1) <= Math.max(tolerance.loss!, 2e-6));
    loss.backward();
    const named = new Map([...adapter.parameters].map(([key, t]) => [`grad.base_model.model.${key}`, t]));
    const wanted = [...tensors.keys()].filter((k) => k.startsWith('grad.'));
    assert.deepEqual([...named.keys()].sort(), wanted.sort());
    for (const key of wanted) {
      const error = relativeError(numbers(named.get(key)!.grad!), numbers(tensors.get(key)!));
      assert.ok(error <= tolerance.grad!, `${key} differs by ${error}`);
    }
  });

  if (kind !== 'class' && kind !== 'tags') continue;
  test(`${name}: twenty steps of training are PEFT's`, async () => {
    using dir = temporary();
    const { tensors } = readTensors(golden('peft', name, 'golden.safetensors'));
    const result = await runTraining(
      {
        recipe: parseRecipe({
          model: golden(base),
          adapter: golden('peft', name),
          method: { type: 'lora' },
          data: { train: golden('peft', `batches.${kind}.jsonl`), format: 'batches' },
          train: { lr: 1e-2, weight_decay: 0, steps: 20, micro_tokens: 24, threads: 1 },
          run: { dir: dir.path },
        }),
      },
      () => {},
    );
    const curve = numbers(tensors.get('curve')!);
    assert.equal(result.losses.length, 20);
    assert.equal(curve.length, 20);
    curve.forEach((want, i) => {
      const got = result.losses[i]!;
      assert.ok(Math.abs(got / want - 1) <= 1e-3, `loss of step ${i + 1} is ${got}, PEFT's ${want}`);
    });
    const saved = JSON.parse(readFileSync(join(result.adapter, 'graft.json'), 'utf8')) as {
      task: { labels: string[] };
    };
    assert.ok(saved.task.labels.length >= 3);
  });
}
