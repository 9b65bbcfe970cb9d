/**
 * How often a training step, and a generated token, move numbers between the host and the model's device. The processor counts as a
 * device: on a GPU every read waits for all that was computed before.
 */
import assert from 'node:assert/strict';
import test, { before } from 'node:test';
import { savedAdapters } from '../../src/adapters/index.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { Batcher, bankKey, generate } from '../../src/generate/index.ts';
import { attachMethods } from '../../src/methods/index.ts';
import { loadModel } from '../../src/models/index.ts';
import { createOptimizer } from '../../src/optim/index.ts';
import { scope } from '../../src/tensor/index.ts';
import { trainStep } from '../../src/train/index.ts';
import { golden } from '../support.ts';
import { type Base, bases, familyBases } from './bases.ts';
import { type FamilyCase, familyCases } from './family-cases.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
});

/** Runs `act` and returns what moved. */
function moved(act: () => void): { toDevice: number; toHost: number } {
  const { native } = currentEngine();
  const before = native.transfers();
  act();
  const after = native.transfers();
  return { toDevice: after.toDevice - before.toDevice, toHost: after.toHost - before.toHost };
}

/** What the second step of a run moves, whose optimizer has its state. Undefined where the method refuses the model. */
function ofStep(base: Base, { choices, refuses }: FamilyCase, type = 'adamw') {
  using _ = scope();
  using model = base.load();
  if (refuses?.(model)) return undefined;
  const choice = choices(base);
  using adapter = attachMethods(model, choice, 0, savedAdapters(model));
  const optimizer = createOptimizer({ type } as never, adapter.parameters);
  using __ = optimizer;
  const step = (n: number) => {
    adapter.beforeStep?.(n, 10);
    trainStep({
      model,
      adapter,
      parameters: adapter.parameters,
      optimizer,
      batches: [base.batch(model)],
      lr: 1e-3,
      maxGradNorm: 1,
      seed: 0,
      step: n,
    });
  };
  step(0);
  return moved(() => step(1));
}

/** Families whose tasks add a copy of their own to the rows': targets, labels, weights. */
const steps = { cases: 0, reads: 0, mostWrites: 0 };

for (const base of [...bases.slice(0, 1), ...familyBases]) {
  test(`a step reads once: every method on ${base.name}`, () => {
    for (const familyCase of familyCases) {
      const counts = ofStep(base, familyCase);
      if (!counts) continue;
      const { method, config } = familyCase;
      assert.equal(counts.toHost, 1, `${method} (${config}) reads ${counts.toHost} times`);
      steps.cases++;
      steps.reads += counts.toHost;
      steps.mostWrites = Math.max(steps.mostWrites, counts.toDevice);
    }
  });
}

test('every step reads the loss and the norm of the gradients together, and nothing else', (t) => {
  t.diagnostic(
    `${steps.cases} steps of methods on models: ${steps.reads} reads, at most ${steps.mostWrites} writes each`,
  );
  assert.equal(steps.cases, familyCases.length * (1 + familyBases.length) - 2 * 4);
  assert.equal(steps.reads, steps.cases);
  assert.equal(steps.mostWrites, 16);
});

test('LoRA on a language model writes tokens and targets', () => {
  const lora = familyCases.find(({ method }) => method === 'lora')!;
  assert.deepEqual(ofStep(bases[0]!, lora), { toDevice: 2, toHost: 1 });
});

test('optimizers read nothing from the device but the counts of steps that they keep on the host', () => {
  const full = familyCases.find(({ method }) => method === 'full')!;
  const reads = ['adamw', 'adamw8bit', 'sgd', 'lion'].map((type) => [type, ofStep(bases[0]!, full, type)!.toHost]);
  assert.deepEqual(
    reads,
    reads.map(([type]) => [type, 1]),
  );
  assert.equal(reads.length, 4);
});

test('a generated token is one read, and two writes: of the token, and of its place in the pool', () => {
  using model = loadModel(golden('models', 'llama2'));
  const tokens = generate(model, [1, 2, 3], { maxNewTokens: 8 });
  tokens.next();
  const counts = [1, 2, 3, 4].map(() => moved(() => void tokens.next()));
  tokens.return(undefined as never);
  assert.deepEqual(
    counts,
    counts.map(() => ({ toDevice: 2, toHost: 1 })),
  );
  assert.equal(counts.length, 4);
});

test('a pass for several rows is one read, and one write more, of their positions', () => {
  using model = loadModel(golden('models', 'llama2'));
  const limits = { maxBatchTokens: 64, maxRunning: 5, maxQueue: 5, blocks: 5 };
  using batcher = new Batcher({ limits, shape: model, activate: () => model });
  let tokens = 0;
  const listener = {
    delta: ({ ids }: { readonly ids: readonly number[] }) => {
      tokens += ids.length;
    },
    end() {},
    fail: assert.fail,
  };
  for (let row = 0; row < 5; row++) {
    const adapter = { number: 0, batchKey: bankKey, contentKey: 'base', virtual: 0, taskNumber: undefined };
    const promptIds = Array.from({ length: 1 + row }, (_, i) => 3 + i + row);
    batcher.submit({ promptIds, maxNewTokens: 8 }, adapter, 8, listener);
  }
  batcher.step();
  const counts = [1, 2, 3, 4].map(() => moved(() => batcher.step()));
  assert.deepEqual(
    counts,
    counts.map(() => ({ toDevice: 3, toHost: 1 })),
  );
  assert.equal(tokens, 5 * 5);
});
