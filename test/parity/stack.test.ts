/** Stacks of adapters in a recipe: a task adapter on a frozen language adapter, and a fusion of saved adapters. */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { loadAdapter, readAdapterConfig } from '../../src/adapters/index.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { loadModel } from '../../src/models/index.ts';
import { scope } from '../../src/tensor/index.ts';
import { parseRecipe, runTraining, type TrainEvent } from '../../src/train/index.ts';
import { golden, logitsOf, numbers, readTensors, temporary } from '../support.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
});

const ids = [3, 1, 4, 1, 5, 9, 2, 6];

async function train(dir: string, method: object, more: object = {}) {
  const events: TrainEvent[] = [];
  const recipe = {
    model: golden('models', 'llama3'),
    method,
    data: { train: golden('peft', 'batches.lm.jsonl'), format: 'batches' },
    train: { lr: 1e-2, epochs: 4, threads: 1 },
    run: { dir },
    ...more,
  };
  const { losses, adapter } = await runTraining({ recipe: parseRecipe(recipe) }, (event) => events.push(event));
  const start = events.find((e) => e.type === 'start')!;
  return { losses, adapter, trainable: start.trainable };
}

const mean = (values: readonly number[]) => values.reduce((a, b) => a + b, 0) / values.length;
const values = (file: string) => {
  using _ = scope();
  return new Map([...readTensors(file).tensors].map(([key, tensor]) => [key, numbers(tensor).slice()]));
};

test('a task adapter is trained on a frozen language adapter; both are saved, loaded and trained further', async () => {
  using root = temporary();
  const language = await train(join(root.path, 'german'), {
    type: 'bottleneck',
    config: 'seq_bn_inv',
    reduction_factor: 4,
  });
  const stack = [
    { type: 'bottleneck', adapter: language.adapter, train: false },
    { type: 'bottleneck', reduction_factor: 8 },
  ];
  const task = await train(join(root.path, 'spam'), stack);
  // Per layer: down 4 × 32 + 4, up 32 × 4 + 32.
  assert.equal(task.trainable, 3 * (4 * 32 + 4 + 32 * 4 + 32));
  assert.equal(task.losses.length, 120);
  assert.ok(mean(task.losses.slice(-30)) < 0.985 * mean(task.losses.slice(0, 30)), `${task.losses}`);
  assert.deepEqual(readdirSync(task.adapter).sort(), ['0-bottleneck', '1-bottleneck', 'README.md', 'graft.json']);
  const lower = values(join(task.adapter, '0-bottleneck', 'adapter.safetensors'));
  const original = values(join(language.adapter, 'adapter.safetensors'));
  assert.deepEqual([...lower.values()], [...original.values()], 'the language adapter is as it was');

  const kept = readAdapterConfig(task.adapter).parts.map(({ choice }) => choice.train ?? true);
  assert.deepEqual(kept, [false, true]);
  const again = await train(join(root.path, 'again'), stack, { adapter: task.adapter });
  assert.equal(again.trainable, task.trainable);
  assert.ok(mean(again.losses) < mean(task.losses.slice(0, 30)), 'it goes on from what was learned');

  using model = loadModel(golden('models', 'llama3'));
  const plain = logitsOf(model, ids);
  using both = loadAdapter(model, task.adapter);
  const stacked = logitsOf(model, ids);
  both.enabled = false;
  assert.deepEqual(logitsOf(model, ids), plain);
  // The same language adapter under another task's adapter: shared, and switched without loading again.
  using alone = loadAdapter(model, language.adapter);
  assert.notDeepEqual(logitsOf(model, ids), stacked);
  alone.enabled = false;
  both.enabled = true;
  assert.deepEqual(logitsOf(model, ids), stacked);
});

test('a fusion of saved adapters is trained, and the adapters are not', async () => {
  using root = temporary();
  const adapters: string[] = [];
  for (const [name, seed] of [
    ['one', 1],
    ['two', 2],
  ] as const) {
    const method = { type: 'bottleneck', reduction_factor: 4 };
    adapters.push((await train(join(root.path, name), method, { train: { lr: 1e-2, threads: 1, seed } })).adapter);
  }
  const { adapter, trainable, losses } = await train(join(root.path, 'mixed'), { type: 'fusion', adapters });
  // Per layer: query and key with bias, value without.
  assert.equal(trainable, 3 * (2 * (32 * 32 + 32) + 32 * 32));
  assert.ok(losses.every(Number.isFinite));
  for (const [i, name] of ['one', 'two'].entries()) {
    const [inside, before] = [join(adapter, name), adapters[i]!].map((dir) => values(join(dir, 'adapter.safetensors')));
    assert.deepEqual(inside, before, `${name} is as it was`);
  }
  using model = loadModel(golden('models', 'llama3'));
  using loaded = loadAdapter(model, adapter);
  assert.equal(loaded.method, 'fusion');
  assert.equal(loaded.parts[0]!.nested!.size, 2);
});

test('a recipe with nothing to train, or with an adapter of another method, is refused', async () => {
  using root = temporary();
  const { adapter } = await train(join(root.path, 'a'), { type: 'bottleneck' }, { train: { steps: 1, threads: 1 } });
  const frozen = { type: 'bottleneck', adapter, train: false };
  await assert.rejects(train(join(root.path, 'b'), frozen), /nothing to train/);
  await assert.rejects(train(join(root.path, 'c'), [frozen, { type: 'lora', adapter }]), /says lora, .* is bottleneck/);
  const average = { type: 'fusion', config: 'average', adapters: [adapter] };
  await assert.rejects(train(join(root.path, 'd'), average), /nothing to train/);
});
