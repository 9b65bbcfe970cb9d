/** Runs whose optimizer updates in the backward pass: what is refused, what is told, and what a failure leaves. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { golden, numbers, readTensors, temporary } from '../../test/support.ts';
import type { GraftError } from '../base/index.ts';
import { pack } from '../data/index.ts';
import { currentEngine, startEngine } from '../engine/index.ts';
import { attachMethods } from '../methods/index.ts';
import { loadModel } from '../models/index.ts';
import { createOptimizer } from '../optim/index.ts';
import { scope } from '../tensor/index.ts';
import type { TrainEvent } from './events.ts';
import { parseRecipe } from './recipe.ts';
import { runTraining } from './run.ts';
import { trainStep } from './step.ts';
import { requireNoWholeGradients } from './whole-gradients.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
});

/** 24 ragged rows of 4 to 30 tokens. */
function recipeIn(dir: string, train: object = {}, others: object = {}) {
  const row = (r: number) => Array.from({ length: 4 + ((r * 11) % 27) }, (_, i) => 3 + ((r * 13 + i * 7) % 60));
  const data = join(dir, 'rows.jsonl');
  writeFileSync(data, Array.from({ length: 24 }, (_, r) => `${JSON.stringify({ ids: row(r) })}\n`).join(''));
  return {
    model: golden('models', 'qwen2'),
    method: { type: 'full' },
    data: { train: data, format: 'tokens', held_out: 4 },
    train: {
      optimizer: { type: 'lomo' },
      lr: 0.02,
      schedule: 'cosine',
      epochs: 2,
      batch_size: 4,
      threads: 1,
      ...train,
    },
    eval: { every: 4 },
    run: { dir: join(dir, 'run'), checkpoint_every: 3 },
    ...others,
  };
}

async function train(recipe: object, killAt?: (event: TrainEvent) => boolean) {
  const events: TrainEvent[] = [];
  const result = await runTraining({ recipe: parseRecipe(recipe) }, (event) => {
    events.push(event);
    if (killAt?.(event)) throw new Error('killed');
  });
  return { events, result };
}

const usage = (message: RegExp) => (error: GraftError) => {
  assert.equal(error.kind, 'usage');
  assert.match(error.message, message);
  return true;
};

const lora = { r: 4, target_modules: 'all-linear' };
const refused: Readonly<Record<string, readonly [train: object, others: object, message: RegExp]>> = {
  'clipping by the norm of all gradients': [
    { max_grad_norm: 1 },
    {},
    /recipe, train\.max_grad_norm: max_grad_norm clips all gradients together.*optimizer\.clip_grad_value.*adalomo.*adamw/,
  ],
  'a method that reads the gradients afterwards': [
    {},
    {
      method: {
        type: 'adalora',
        target_modules: 'all-linear',
        init_r: 4,
        target_r: 2,
        tinit: 1,
        tfinal: 2,
        orth_reg_weight: 0,
      },
    },
    /the method reads the gradients after each update.*Use adamw/,
  ],
  'a method with a term of its own in the loss': [
    {},
    { method: { type: 'adalora', target_modules: 'all-linear', init_r: 4, target_r: 2, tinit: 1, tfinal: 2 } },
    /the method adds a term of its own to the loss.*Use adamw/,
  ],
  'steps with more tokens than micro_tokens': [
    { micro_tokens: 48 },
    {},
    /train\.micro_tokens: lomo takes the rows of a step as one micro-batch, and step \d+ has \d\d tokens, more than micro_tokens \(48\)\. Lower train\.batch_size/,
  ],
};

for (const optimizer of ['lomo', 'adalomo']) {
  test(`${optimizer}: what cannot be done in the backward pass is refused before the directory of the run exists`, async (t) => {
    using dir = temporary();
    for (const [what, [fields, others, message]] of Object.entries(refused)) {
      const recipe = recipeIn(dir.path, { optimizer: { type: optimizer }, ...fields }, others);
      const expected = new RegExp(message.source.replace('lomo takes', `${optimizer} takes`));
      await assert.rejects(async () => train(recipe), usage(expected), what);
      assert.ok(!existsSync(recipe.run.dir) || !existsSync(join(recipe.run.dir, 'run.json')), what);
    }
    t.diagnostic(`${Object.keys(refused).length} refusals`);
  });

  test(`${optimizer}: a run that was killed and resumed equals the run never killed, bit for bit`, async () => {
    using dir = temporary();
    const at = (name: string) =>
      recipeIn(
        dir.path,
        { optimizer: { type: optimizer } },
        { run: { dir: join(dir.path, name), checkpoint_every: 3 } },
      );
    const live = currentEngine().native.memory().handles;
    const whole = await train(at('whole'));
    const weights = ({ adapter }: { adapter: string }) => readFileSync(join(adapter, 'model.safetensors'));
    assert.equal(whole.result.losses.length, 10);
    assert.equal(new Set(whole.events.flatMap((e) => (e.type === 'step' ? [e.handles] : []))).size, 1);
    for (const step of [2, 3, 5, 8]) {
      await assert.rejects(
        train(at(`at-${step}`), (e) => e.type === 'step' && e.step === step),
        /killed/,
      );
      const { result } = await train(at(`at-${step}`));
      assert.equal(result.resumedFrom, 3 * Math.floor((step - 1) / 3));
      assert.deepEqual(result.losses, whole.result.losses);
      assert.ok(weights(result).equals(weights(whole.result)));
    }
    assert.equal(currentEngine().native.memory().handles, live);
  });
}

test('a step is one micro-batch, which the run tells; with fewer tokens than micro_tokens it says nothing', async () => {
  using dir = temporary();
  const { events } = await train(recipeIn(dir.path, { micro_tokens: 400 }));
  const start = events.find((event) => event.type === 'start')!;
  const tokens = events.flatMap((event) => (event.type === 'step' ? [event.tokens] : []));
  assert.equal(start.microTokens, Math.max(...tokens));
  assert.deepEqual(
    events.filter(({ type }) => type === 'warning'),
    [],
  );
  const adamw = await train(
    recipeIn(dir.path, { optimizer: { type: 'adamw' }, micro_tokens: 400 }, { run: { dir: join(dir.path, 'b') } }),
  );
  assert.equal(adamw.events.find((event) => event.type === 'start')!.microTokens, 400);
});

test('a step of the engine refuses several micro-batches and clipping', () => {
  using _ = scope();
  using model = loadModel(golden('models', 'llama3'));
  using adapter = attachMethods(model, [{ type: 'lora', ...lora }], 0);
  const { parameters } = adapter;
  using optimizer = createOptimizer({ type: 'lomo' }, parameters);
  const ids = Int32Array.of(5, 6, 7, 8);
  const batch = pack([{ ids, labels: ids, place: 'row' }]);
  const input = { model, parameters, optimizer, adapter, lr: 0.1, maxGradNorm: undefined, seed: 0, step: 0 };
  const before = [...parameters.values()].map((tensor) => tensor.bytes());
  assert.throws(
    () => trainStep({ ...input, batches: [batch, batch] }),
    usage(/step 1 has 2 micro-batches.*one micro-batch/),
  );
  assert.throws(() => trainStep({ ...input, batches: [batch], maxGradNorm: 1 }), usage(/max_grad_norm clips/));
  assert.deepEqual(
    [...parameters.values()].map((tensor) => tensor.bytes()),
    before,
  );
  assert.ok(trainStep({ ...input, batches: [batch] }).gradNorm > 0);
});

test('several processes, whose gradients are added up, are refused', () => {
  assert.throws(
    () => requireNoWholeGradients({ processes: 2 }),
    usage(/several processes add their gradients up.*one process/),
  );
  requireNoWholeGradients({ processes: 1 });
});

test('a rate that is too high: the run names the setting that bounds gradients, and its last checkpoint is intact', async () => {
  using dir = temporary();
  const { run, ...recipe } = recipeIn(dir.path, { lr: 1e6, schedule: 'constant' });
  let failure: GraftError | undefined;
  await train({ ...recipe, run: { ...run, checkpoint_every: 1 } }).catch((error) => {
    failure = error;
  });
  assert.equal(failure?.kind, 'numeric');
  assert.match(
    failure!.message,
    /is not finite\..*The likely cause:.*Lower train\.lr, or set train\.optimizer\.clip_grad_value/,
  );
  const checkpoint = failure!.data?.checkpoint as string;
  assert.ok(existsSync(checkpoint));
  using _ = scope();
  const { tensors } = readTensors(join(checkpoint, 'parameters.safetensors'));
  assert.ok(tensors.size > 10);
  for (const [name, tensor] of tensors) assert.ok(numbers(tensor).every(Number.isFinite), name);
  for (const { grad } of tensors.values()) assert.equal(grad, undefined);
});
