/** Optimizers that update in the backward pass, against lomo-optim: losses, gradient norms and weights of whole runs. */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { readJson } from '../../src/io/index.ts';
import { scope } from '../../src/tensor/index.ts';
import { parseRecipe, runTraining, type TrainEvent } from '../../src/train/index.ts';
import { golden, numbers, readTensors, temporary } from '../support.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
});

interface Run {
  readonly model: string;
  readonly optimizer: { readonly type: string };
  readonly train: object;
  readonly loss: readonly number[];
  readonly lr: readonly number[];
  readonly grad_norm: readonly number[];
  readonly moved: Readonly<Record<string, number>>;
}

const { runs, provenance } = JSON.parse(readFileSync(golden('optimizer', 'lomo.json'), 'utf8')) as {
  runs: Readonly<Record<string, Run>>;
  provenance: { tolerance: Record<'loss' | 'lr' | 'grad_norm' | 'moved', number> };
};
const { tolerance } = provenance;

/** The rows of the goldens: those of train/, with ids that the model has. */
function batches(dir: string, model: string): string {
  const { vocab_size: vocab } = readJson(join(golden('models', model), 'config.json')) as { vocab_size: number };
  const text = readFileSync(golden('train', 'batches.jsonl'), 'utf8');
  const file = join(dir, 'batches.jsonl');
  const known = (key: string, value: unknown) =>
    key === 'ids' || key === 'labels' ? (value as number[]).map((id) => (id < 0 ? id : id % vocab)) : value;
  const lines = text.trim().split('\n');
  writeFileSync(file, lines.map((line) => `${JSON.stringify(JSON.parse(line, known))}\n`).join(''));
  return file;
}

test('there are six recorded runs, three of each optimizer', () => {
  const types = Object.values(runs).map(({ optimizer }) => optimizer.type);
  assert.deepEqual(types, ['lomo', 'lomo', 'lomo', 'adalomo', 'adalomo', 'adalomo']);
});

for (const [name, run] of Object.entries(runs)) {
  for (const checkpointing of [false, true]) {
    test(`${name}${checkpointing ? ', with gradient checkpointing' : ''}: 20 losses, rates and gradient norms, and how far each weight moved`, async () => {
      using _ = scope();
      using dir = temporary();
      const events: TrainEvent[] = [];
      const recipe = parseRecipe({
        model: golden('models', run.model),
        method: { type: 'full' },
        data: { train: batches(dir.path, run.model), format: 'batches' },
        train: { ...run.train, optimizer: run.optimizer, threads: 1, gradient_checkpointing: checkpointing },
        run: { dir: join(dir.path, 'run') },
      });
      const { adapter } = await runTraining({ recipe }, (event) => void events.push(event));
      const steps = events.filter((event) => event.type === 'step');
      assert.equal(steps.length, 20);
      let compared = 0;
      const close = (what: string, got: number, want: number, bound: number) => {
        assert.ok(Math.abs(got - want) <= bound * Math.abs(want), `${what} is ${got}, lomo-optim's ${want}`);
        compared++;
      };
      for (const [i, { loss, lr, gradNorm }] of steps.entries()) {
        close(`loss of step ${i + 1}`, loss, run.loss[i]!, tolerance.loss);
        close(`lr of step ${i + 1}`, lr, run.lr[i]!, tolerance.lr);
        close(`gradient norm of step ${i + 1}`, gradNorm, run.grad_norm[i]!, tolerance.grad_norm);
      }
      const { tensors: start } = readTensors(join(golden('models', run.model), 'model.safetensors'));
      const { tensors: end } = readTensors(join(adapter, 'model.safetensors'));
      for (const [key, distance] of Object.entries(run.moved)) {
        const from = numbers(start.get(key)!);
        const moved = Math.hypot(...numbers(end.get(key)!).map((x, i) => x - from[i]!));
        close(`distance of ${key}`, moved, distance, tolerance.moved);
      }
      assert.equal(compared, 60 + Object.keys(run.moved).length);
    });
  }
}
