/** Training runs against PEFT's, and against themselves: cut into other micro-batches, killed and gone on with. */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { fromWire, type GraftError, toWire } from '../../src/base/index.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { methods } from '../../src/methods/index.ts';
import { loadModel } from '../../src/models/index.ts';
import { namedTensors } from '../../src/nn/index.ts';
import { scope } from '../../src/tensor/index.ts';
import { parseRecipe, runTraining, type TrainEvent, type TrainResult } from '../../src/train/index.ts';
import { golden, logitsOf, numbers, readTensors, relativeError, temporary } from '../support.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
});

interface Settings {
  lr: number;
  weight_decay: number;
  schedule: string;
  warmup_steps?: number;
  max_grad_norm?: number;
}

const { runs } = JSON.parse(readFileSync(golden('train', 'runs.json'), 'utf8')) as {
  runs: Record<string, { settings: Settings }>;
};

type Step = Extract<TrainEvent, { type: 'step' }>;
const steps = (events: readonly TrainEvent[]) => events.filter((e): e is Step => e.type === 'step');

async function train(recipe: object, stopAt?: (event: TrainEvent) => boolean) {
  const events: TrainEvent[] = [];
  const result: TrainResult = await runTraining({ recipe: parseRecipe(recipe) }, (event) => {
    events.push(event);
    if (stopAt?.(event)) throw new Error('killed');
  });
  return { events, result };
}

test('there are four recorded runs', () => assert.equal(Object.keys(runs).length, 4));

for (const [name, { settings }] of Object.entries(runs)) {
  for (const micro of [768, 40]) {
    test(`${name}, ${micro} tokens at a time: loss, rate and gradient norm of 20 steps and the weights are PEFT's`, async () => {
      using _ = scope();
      using dir = temporary();
      const { tensors, metadata } = readTensors(golden('train', `${name}.safetensors`));
      const { tolerance } = JSON.parse(String(metadata.get('provenance'))) as { tolerance: Record<string, number> };
      const { events, result } = await train({
        model: golden('models', 'llama3'),
        adapter: golden('train', 'start'),
        method: { type: 'lora', r: 4, lora_alpha: 8, target_modules: 'all-linear' },
        data: { train: golden('train', 'batches.jsonl'), format: 'batches' },
        train: { ...settings, micro_tokens: micro, threads: 1 },
        run: { dir: dir.path },
      });
      const compared = { loss: 0, lr: 0, gradNorm: 0 };
      for (const [field, key] of [
        ['loss', 'loss'],
        ['lr', 'lr'],
        ['gradNorm', 'grad_norm'],
      ] as const) {
        numbers(tensors.get(key)!).forEach((want, i) => {
          const got = steps(events)[i]![field];
          const error = want === 0 ? Math.abs(got) : Math.abs(got / want - 1);
          assert.ok(error <= tolerance[key]!, `${key} of step ${i + 1} is ${got}, PEFT's ${want}`);
          compared[field]++;
        });
      }
      assert.deepEqual(compared, { loss: 20, lr: 20, gradNorm: 20 });
      assert.deepEqual(
        result.losses,
        steps(events).map(({ loss }) => loss),
      );
      assert.ok(steps(events).some(({ tokens }) => tokens > 40));

      const { tensors: trained } = readTensors(join(result.adapter, 'adapter_model.safetensors'));
      const wanted = [...tensors.keys()].filter((key) => key.startsWith('final.')).map((key) => key.slice(6));
      assert.deepEqual([...trained.keys()].sort(), wanted.sort());
      assert.equal(wanted.length, 42);
      for (const key of wanted) {
        const error = relativeError(numbers(trained.get(key)!), numbers(tensors.get(`final.${key}`)!));
        assert.ok(error <= tolerance.final!, `${key} differs by ${error}`);
      }
    });
  }
}

/** 32 ragged rows that can be learned: the next id is 7 more, in a circle of 60. */
function rows(dir: string): string {
  const file = join(dir, 'rows.jsonl');
  const row = (r: number) => Array.from({ length: 4 + ((r * 11) % 27) }, (_, i) => 3 + ((r * 13 + i * 7) % 60));
  writeFileSync(file, Array.from({ length: 32 }, (_, r) => `${JSON.stringify({ ids: row(r) })}\n`).join(''));
  return file;
}

const lora = { type: 'lora', r: 4, target_modules: 'all-linear', lora_dropout: 0.2, modules_to_save: ['norm'] };
const shuffled = (method: object, data: string, dir: string) => ({
  model: golden('models', 'qwen2'),
  method,
  data: { train: data, format: 'tokens', held_out: 6 },
  train: {
    lr: 3e-3,
    schedule: 'cosine',
    warmup_steps: 2,
    epochs: 2,
    batch_size: 4,
    micro_tokens: 48,
    threads: 1,
  },
  eval: { every: 4 },
  run: { dir, checkpoint_every: 3 },
});

/** What an event says, without what no two runs share. */
const said = (events: readonly TrainEvent[]) =>
  events.flatMap((event) =>
    event.type === 'step' || event.type === 'eval' ? [{ ...event, seconds: undefined, rssMb: undefined }] : [],
  );
const logged = (dir: string) =>
  readFileSync(join(dir, 'events.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => fromWire(JSON.parse(line)) as TrainEvent);

const kills: Readonly<Record<string, (event: TrainEvent) => boolean>> = {
  'before any checkpoint': (e) => e.type === 'step' && e.step === 2,
  'two steps after a checkpoint': (e) => e.type === 'step' && e.step === 5,
  'between measuring and saving': (e) => e.type === 'eval' && e.step === 12,
  'right after a checkpoint': (e) => e.type === 'checkpoint' && e.step === 9,
  'when only handing over was left': (e) => e.type === 'checkpoint' && e.step === 14,
};

for (const [name, method] of Object.entries({ 'lora with drop-out': lora, full: { type: 'full' } })) {
  test(`${name}: a run that was killed and gone on with equals the run never killed, bit for bit`, async (t) => {
    using dir = temporary();
    const data = rows(dir.path);
    const live = currentEngine().native.memory().handles;
    const file = name === 'full' ? 'model.safetensors' : 'adapter_model.safetensors';
    const whole = await train(shuffled(method, data, join(dir.path, 'whole')));
    assert.equal(steps(whole.events).length, 14);
    assert.ok(whole.events.filter((e) => e.type === 'eval' && e.best).length > 1);
    const weights = readFileSync(join(whole.result.adapter, file));

    for (const [when, kill] of Object.entries(kills)) {
      const recipe = shuffled(method, data, join(dir.path, when));
      await assert.rejects(train(recipe, kill), /killed/, when);
      const { result } = await train(recipe);
      assert.equal(
        result.resumedFrom,
        { 'before any checkpoint': 0, 'two steps after a checkpoint': 3, 'between measuring and saving': 9 }[when] ??
          (when === 'right after a checkpoint' ? 9 : 14),
        when,
      );
      assert.deepEqual(result.losses, whole.result.losses, when);
      assert.equal(result.evalLoss, whole.result.evalLoss, when);
      assert.deepEqual(said(logged(recipe.run.dir)), said(whole.events), when);
      assert.ok(readFileSync(join(result.adapter, file)).equals(weights), when);
    }
    assert.equal(currentEngine().native.memory().handles, live, 'live handles');
    t.diagnostic(`${Object.keys(kills).length} kills`);
  });
}

test('a run stopped while it measures ends after one batch and resumes with the measurement: equal to the run never stopped', async () => {
  using dir = temporary();
  const data = rows(dir.path);
  const whole = await train(shuffled(lora, data, join(dir.path, 'whole')));
  const recipe = shuffled(lora, data, join(dir.path, 'stopped'));
  const measured = [4, 8, 12, 14];
  for (const at of measured) {
    let [step, asked] = [0, 0];
    const listen = (event: TrainEvent) => {
      if (event.type === 'step') step = event.step;
    };
    const stop = () => step === at && ++asked > 0;
    const stopped = (error: GraftError) => error.kind === 'interrupted' && error.data.step === at;
    await assert.rejects(runTraining({ recipe: parseRecipe(recipe) }, listen, stop), stopped);
    const events = logged(recipe.run.dir);
    assert.equal(events.at(-1)?.type, 'checkpoint');
    assert.ok(!events.some((e) => e.type === 'eval' && e.step === at), `no measurement at ${at}`);
    assert.ok(asked <= 2, `asked ${asked} times`);
  }
  const { result } = await train(recipe);
  assert.equal(result.resumedFrom, 14);
  assert.deepEqual(result.losses, whole.result.losses);
  assert.equal(result.evalLoss, whole.result.evalLoss);
  assert.deepEqual(said(logged(recipe.run.dir)), said(whole.events));
  const weights = ({ adapter }: TrainResult) => readFileSync(join(adapter, 'adapter_model.safetensors'));
  assert.ok(weights(result).equals(weights(whole.result)));
});

test('another seed shuffles, drops and starts otherwise', async () => {
  using dir = temporary();
  const data = rows(dir.path);
  const recipe = (seed: number) => {
    const r = shuffled(lora, data, join(dir.path, String(seed)));
    return { ...r, train: { ...r.train, seed, epochs: 1 } };
  };
  const [a, b] = [await train(recipe(1)), await train(recipe(2))];
  assert.notDeepEqual(a.result.losses, b.result.losses);
});

test('a run that was killed after it had stopped early does not go on; its cut into micro-batches stays', async () => {
  using dir = temporary();
  const { train: given, ...rest } = shuffled(lora, rows(dir.path), join(dir.path, 'run'));
  const { micro_tokens: _, ...free } = given;
  // A rate that makes the second measurement worse than the first.
  const recipe = {
    ...rest,
    train: { ...free, lr: 3 },
    eval: { every: 1, patience: 2 },
    run: { ...rest.run, checkpoint_every: 100 },
  };
  await assert.rejects(
    train(recipe, (e) => e.type === 'checkpoint'),
    /killed/,
  );
  const log = join(dir.path, 'run', 'events.jsonl');
  const stop = logged(recipe.run.dir).at(-1) as Extract<TrainEvent, { type: 'checkpoint' }>;
  assert.ok(stop.step < 14);
  const record = join(dir.path, 'run', 'run.json');
  writeFileSync(record, JSON.stringify({ ...JSON.parse(readFileSync(record, 'utf8')), microTokens: 50 }));
  const { events, result } = await train(recipe);
  assert.equal(steps(events).length, 0);
  assert.equal(result.resumedFrom, stop.step);
  const [first, last] = [events.find(({ type }) => type === 'start')!, events.at(-1)!];
  assert.ok(first.type === 'start' && first.microTokens === 50);
  assert.ok(last.type === 'end' && last.reason === 'early-stop');

  // Killed once more, after the best adapter was handed over and before the run said so.
  const best = readFileSync(join(result.adapter, 'adapter_model.safetensors'));
  writeFileSync(
    log,
    logged(recipe.run.dir)
      .slice(0, -1)
      .map((e) => `${JSON.stringify(toWire(e))}\n`)
      .join(''),
  );
  const again = await train(recipe);
  assert.equal(again.result.resumedFrom, stop.step);
  assert.ok(readFileSync(join(again.result.adapter, 'adapter_model.safetensors')).equals(best));
});

test('full fine-tuning hands over a model that loads again with the logits of the trained one', async () => {
  using dir = temporary();
  const recipe = {
    ...shuffled({ type: 'full' }, rows(dir.path), join(dir.path, 'run')),
    eval: { keep: 'last' },
  };
  const { result } = await train(recipe);
  using _ = scope();
  using start = loadModel(recipe.model);
  using trained = loadModel(result.adapter);
  const ids = [5, 9, 2, 77, 30, 31, 8];
  const got = logitsOf(trained, ids);
  assert.ok(relativeError(got, logitsOf(start, ids)) > 1e-2, 'training changed the model');

  // The last checkpoint holds the same weights: put on the base, they give the same logits bit for bit.
  const { tensors } = readTensors(join(dir.path, 'run', 'checkpoints', 'step-0000014', 'parameters.safetensors'));
  using adapter = methods.full.attach(start, {}, 0);
  assert.deepEqual([...adapter.parameters.keys()].sort(), [...tensors.keys()].sort());
  for (const [key, parameter] of adapter.parameters) parameter.memory().set(tensors.get(key)!.bytes());
  assert.deepEqual(logitsOf(start, ids), got);
  const written = new Map(namedTensors(trained.root));
  for (const [key, tensor] of tensors) assert.deepEqual(written.get(key)!.bytes(), tensor.bytes(), key);
});
