/** Runs with quantisation-aware training from recipe to files: learned ranges, a delayed start, kills, saved adapters as a start. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { loadAdapter } from '../../src/adapters/index.ts';
import type { GraftError } from '../../src/base/index.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { generate } from '../../src/generate/index.ts';
import { attachMethods } from '../../src/methods/index.ts';
import { loadModel } from '../../src/models/index.ts';
import { type Linear, moduleAt, unwrapped } from '../../src/nn/index.ts';
import { integersOf } from '../../src/quant/index.ts';
import { scope } from '../../src/tensor/index.ts';
import { parseRecipe, runTraining, type TrainEvent, type TrainResult } from '../../src/train/index.ts';
import { golden, logitsOf, numbers, readTensors, relativeError, temporary } from '../support.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
});

type Fields = Readonly<Record<string, unknown>>;
type Of<T extends TrainEvent['type']> = Extract<TrainEvent, { type: T }>;
const only = <T extends TrainEvent['type']>(events: readonly TrainEvent[], type: T) =>
  events.filter((event): event is Of<T> => event.type === type);

async function train(recipe: Fields, stopAt?: (event: TrainEvent) => boolean) {
  const events: TrainEvent[] = [];
  const result: TrainResult = await runTraining({ recipe: parseRecipe(recipe) }, (event) => {
    events.push(event);
    if (stopAt?.(event)) throw new Error('killed');
  });
  return { events, result };
}
const warningsIn = (events: readonly TrainEvent[]) => only(events, 'warning').map(({ message }) => message);

const lora = { type: 'lora', r: 4, target_modules: 'all-linear' };
const full = { type: 'full' };
/** Mistral's layers are 32 and 48 wide. */
const qat = { type: 'qat', weight: 'int4', group_size: 16 };

/** A folder with 24 rows that can be learned, and recipes of eight steps. */
function workspace() {
  const folder = temporary();
  const data = join(folder.path, 'rows.jsonl');
  const row = (r: number) => Array.from({ length: 5 + ((r * 7) % 12) }, (_, i) => 3 + ((r * 13 + i * 7) % 60));
  writeFileSync(data, Array.from({ length: 24 }, (_, r) => `${JSON.stringify({ ids: row(r) })}\n`).join(''));
  const recipe = (name: string, method: readonly Fields[], more: Fields = {}) => ({
    model: golden('models', 'mistral'),
    method,
    data: { train: data, format: 'tokens', held_out: 4 },
    train: { lr: 5e-3, steps: 8, batch_size: 4, micro_tokens: 48, threads: 1, precision: 'float32' },
    eval: { every: 4, keep: 'last' },
    run: { dir: join(folder.path, name), checkpoint_every: 2 },
    ...more,
  });
  return { path: folder.path, recipe, [Symbol.dispose]: () => folder[Symbol.dispose]() };
}

const ids = [5, 9, 2, 77, 30, 31, 8, 60, 61, 12];

for (const [name, trains] of Object.entries({ lora, full })) {
  test(`${name}: learned ranges are trained, saved, and loaded`, async () => {
    using _ = scope();
    using work = workspace();
    const learned = { ...qat, learned_range: true };
    const { result, events } = await train(work.recipe('learned', [trains, learned]));
    const other = await train(work.recipe('constant', [trains, qat]));
    assert.notDeepEqual(result.losses, other.result.losses);
    assert.deepEqual(
      warningsIn(events).filter((message) => /range/.test(message)),
      [],
    );

    const saved = JSON.parse(readFileSync(join(result.adapter, 'graft.json'), 'utf8')) as { settings: Fields[] };
    assert.equal(saved.settings.length, 1);
    assert.equal(saved.settings[0]!.learned_range, true);
    const { tensors: scales } = readTensors(join(result.adapter, 'settings.safetensors'));
    assert.equal(scales.size, 14);
    assert.deepEqual(scales.get('0.model.layers.0.self_attn.q_proj.weight_scale')?.shape, [32, 2]);
    assert.ok(!existsSync(join(other.result.adapter, 'settings.safetensors')));

    // They begin at what the rule gives for the base, and have moved.
    using base = loadModel(golden('models', 'mistral'));
    for (const [key, scale] of scales) {
      const path = key.replace(/^0\.(.*)\.weight_scale$/, '$1');
      const weight = (unwrapped(moduleAt(base.root, path)) as Linear).denseWeight();
      const error = relativeError(
        numbers(scale),
        numbers(integersOf(weight, { format: 'int4', groupSize: 16 }).scales),
      );
      assert.ok(error > 1e-3 && error < 0.5, `${key} moved by ${error}`);
    }
    if (name === 'full') {
      using trained = loadModel(result.adapter);
      assert.ok(relativeError(logitsOf(trained, ids), logitsOf(base, ids)) > 1e-3);
      return;
    }
    using adapter = loadAdapter(base, result.adapter);
    const part = adapter.parts.find(({ method }) => method === 'qat')!;
    for (const [key, tensor] of part.parameters)
      assert.deepEqual(numbers(tensor), numbers(scales.get(`0.${key}`)!), key);
    const logits = logitsOf(base, ids);
    part.enabled = false;
    assert.ok(relativeError(logitsOf(base, ids), logits) > 1e-3);
  });
}

test('a run begins from learned ranges where its recipe has the same settings, and anew where they differ', async () => {
  using _ = scope();
  using work = workspace();
  const learned = { ...qat, learned_range: true };
  const { result } = await train(work.recipe('first', [lora, learned]));
  const from = { adapter: result.adapter };
  const scalesOf = (dir: string) => {
    const { tensors } = readTensors(join(dir, 'settings.safetensors'));
    return [...tensors].map(([key, tensor]) => [key, numbers(tensor)] as const);
  };
  // A rate that moves nothing: what is saved is what the run began with.
  const still = { train: { lr: 1e-30, steps: 1, batch_size: 4, threads: 1 }, ...from };
  const again = await train(work.recipe('again', [lora, learned], still));
  assert.deepEqual(scalesOf(again.result.adapter), scalesOf(result.adapter));
  const wider = await train(work.recipe('wider', [lora, { ...learned, weight: 'int8' }], still));
  assert.notDeepEqual(scalesOf(wider.result.adapter), scalesOf(result.adapter));
  assert.ok(
    warningsIn(wider.events).some((message) => /was trained with other settings of qat/.test(message)),
    warningsIn(wider.events).join('\n'),
  );
  assert.ok(!warningsIn(again.events).some((message) => /settings of qat/.test(message)));
  const delayed = await train(
    work.recipe('delayed', [lora, { ...learned, start_step: 1 }], { ...still, train: { ...still.train, steps: 2 } }),
  );
  assert.deepEqual(scalesOf(delayed.result.adapter), scalesOf(result.adapter));
});

test('DoRA is rounded in a run that measures how many tokens fit, and what is merged is what trained', async () => {
  using work = workspace();
  const dora = { ...lora, use_dora: true };
  const recipe = work.recipe('dora', [dora, qat], { train: { lr: 5e-3, steps: 2, batch_size: 4, threads: 1 } });
  const { result } = await train(recipe);
  assert.ok(result.losses.length === 2 && result.losses.every(Number.isFinite), `${result.losses}`);
});

test('a delayed start: the steps before it are those of the method alone, and it is measured rounded throughout', async () => {
  for (const over of ['merged', 'base']) {
    using work = workspace();
    const plain = await train(work.recipe('plain', [lora]));
    const whole = await train(work.recipe('whole', [lora, { ...qat, over }]));
    const delayed = await train(work.recipe('delayed', [lora, { ...qat, over, start_step: 5 }]));
    const lossesOf = ({ result }: typeof plain) => result.losses;
    assert.deepEqual(lossesOf(delayed).slice(0, 5), lossesOf(plain).slice(0, 5), over);
    assert.notEqual(lossesOf(delayed)[5], lossesOf(plain)[5]);
    assert.notEqual(lossesOf(whole)[0], lossesOf(plain)[0]);
    const [measured, unrounded] = [delayed, plain].map(({ events }) => only(events, 'eval').map(({ loss }) => loss));
    assert.equal(measured!.length, 2);
    assert.notEqual(measured![0], unrounded![0], 'after step 4, before the start');

    // Before the start it is measured as the adapter of these steps is when it is rounded: at a rate that moves nothing.
    const settings = { batch_size: 4, micro_tokens: 48, threads: 1, precision: 'float32' };
    const four = await train(work.recipe('four', [lora], { train: { lr: 5e-3, steps: 4, ...settings } }));
    const still = { train: { lr: 1e-30, steps: 1, ...settings }, adapter: four.result.adapter };
    const rounded = await train(work.recipe('rounded', [lora, { ...qat, over }], still));
    assert.equal(measured![0], rounded.result.evalLoss, over);
  }
});

test('a delayed start that never comes is refused before the first step', async () => {
  using work = workspace();
  for (const start_step of [8, 20]) {
    const recipe = work.recipe(`late-${start_step}`, [lora, { ...qat, start_step }]);
    const steps: number[] = [];
    const refused = (error: GraftError) =>
      error.kind === 'usage' &&
      error.message.includes(`start_step is ${start_step}, and the run ends after 8 steps`) &&
      error.hint === 'Lower start_step';
    await assert.rejects(
      train(recipe, (event) => event.type === 'step' && steps.push(event.step) > 99),
      refused,
    );
    assert.deepEqual(steps, []);
    assert.ok(!existsSync(recipe.run.dir), 'nothing is left');
  }
  const { result } = await train(work.recipe('last', [lora, { ...qat, start_step: 7 }]));
  assert.equal(result.losses.length, 8);
});

const kills: Readonly<Record<string, (event: TrainEvent) => boolean>> = {
  'before any checkpoint': (e) => e.type === 'step' && e.step === 1,
  'before the delayed start': (e) => e.type === 'step' && e.step === 3,
  'between measuring and saving': (e) => e.type === 'eval' && e.step === 4,
  'right after a checkpoint': (e) => e.type === 'checkpoint' && e.step === 6,
  'when only handing over was left': (e) => e.type === 'checkpoint' && e.step === 8,
};
const killed: Readonly<Record<string, readonly Fields[]>> = {
  'over the merged weight, learned, delayed': [lora, { ...qat, learned_range: true, start_step: 3 }],
  'over the base, inputs too': [lora, { ...qat, over: 'base', activation: 'int8', embedding: 'int8', start_step: 3 }],
  'trained whole, with embeddings and head': [full, { ...qat, embedding: 'int4', head: 'int8' }],
};
for (const [name, method] of Object.entries(killed)) {
  test(`${name}: killed and gone on with, a run equals the one never killed, bit for bit`, async (t) => {
    using work = workspace();
    const live = currentEngine().native.memory().handles;
    const whole = await train(work.recipe('whole', method));
    const files = ['adapter_model', 'model', 'settings'].map((file) => `${file}.safetensors`);
    const bytesOf = ({ result }: typeof whole) =>
      files.map((file) => existsSync(join(result.adapter, file)) && readFileSync(join(result.adapter, file), 'hex'));
    assert.ok(bytesOf(whole).some((bytes) => bytes !== false));
    for (const [when, kill] of Object.entries(kills)) {
      const recipe = work.recipe(when, method);
      await assert.rejects(train(recipe, kill), /killed/, when);
      const resumed = await train(recipe);
      assert.deepEqual(resumed.result.losses, whole.result.losses, when);
      assert.equal(resumed.result.evalLoss, whole.result.evalLoss, when);
      assert.deepEqual(bytesOf(resumed), bytesOf(whole), when);
    }
    assert.equal(currentEngine().native.memory().handles, live, 'live handles');
    t.diagnostic(`${Object.keys(kills).length} kills`);
  });
}

test('two qat entries round layers of their own, each as it says', async () => {
  using _ = scope();
  using work = workspace();
  const attention = { ...qat, weight: 'int8', target_modules: ['q_proj', 'k_proj', 'v_proj', 'o_proj'] };
  const mlp = { ...qat, weight: 'int3', group_size: 'channel', target_modules: ['gate_proj', 'up_proj', 'down_proj'] };
  const { result, events } = await train(work.recipe('two', [attention, lora, mlp]));
  const said = warningsIn(events).filter((message) => message.startsWith('qat: '));
  assert.equal(said.length, 2);
  assert.match(said[0]!, /merged weight of 8 layers is rounded to int8/);
  assert.match(said[1]!, /merged weight of 6 layers is rounded to int3/);
  using model = loadModel(golden('models', 'mistral'));
  using adapter = loadAdapter(model, result.adapter);
  const formats = [...adapter.roundings!].map(
    ([path, { quantization }]) => `${path.split('.')[3]} ${quantization.format}`,
  );
  assert.deepEqual(new Set(formats), new Set(['self_attn int8', 'mlp int3']));
  assert.equal(formats.length, 14);
  const together = logitsOf(model, ids);
  adapter.parts.filter(({ method }) => method === 'qat')[1]!.enabled = false;
  assert.ok(relativeError(logitsOf(model, ids), together) > 1e-4, 'the second counts');
});

test('a saved LoRA is the start of a run with qat; its own adapter is the start of one without, which says so', async () => {
  using _ = scope();
  using work = workspace();
  const { result: float } = await train(work.recipe('float', [lora]));
  const from = (adapter: string) => ({ adapter });
  const rounded = await train(work.recipe('rounded', [lora, qat], from(float.adapter)));
  const scratch = await train(work.recipe('scratch', [lora, qat]));
  assert.notEqual(rounded.result.losses[0], scratch.result.losses[0], 'it begins from the adapter');
  assert.ok(!warningsIn(rounded.events).some((message) => /was trained with/.test(message)));
  const saved = JSON.parse(readFileSync(join(rounded.result.adapter, 'graft.json'), 'utf8')) as { settings: Fields[] };
  assert.deepEqual(
    saved.settings.map(({ type, weight, group_size }) => ({ type, weight, group_size })),
    [qat],
  );

  // Loaded, it rounds again; PEFT's files beside its settings are those of a LoRA.
  using model = loadModel(golden('models', 'mistral'));
  {
    using adapter = loadAdapter(model, rounded.result.adapter);
    assert.equal(adapter.roundings!.size, 14);
    const attached = logitsOf(model, ids);
    // Token by token, with a cache: rows of one token take other kernels than those of ten.
    const generated = [...generate(model, ids, { maxNewTokens: 12 })];
    const row = [...ids, ...generated];
    const all = logitsOf(model, row);
    generated.forEach((id, i) => {
      const at = all.subarray((ids.length - 1 + i) * model.vocabSize, (ids.length + i) * model.vocabSize);
      assert.ok(Math.max(...at) - at[id]! <= 1e-4 * Math.abs(at[id]!), `token ${i} is ${id}`);
    });
    assert.equal(generated.length, 12);
    adapter.parts.find(({ method }) => method === 'qat')!.enabled = false;
    assert.ok(relativeError(logitsOf(model, ids), attached) > 1e-3);
  }

  const without = await train(work.recipe('without', [lora], from(rounded.result.adapter)));
  assert.ok(
    warningsIn(without.events).some((message) => /was trained with qat, and this recipe has none$/.test(message)),
    warningsIn(without.events).join('\n'),
  );
  assert.ok(!existsSync(join(without.result.adapter, 'settings.safetensors')));
  const graft = join(without.result.adapter, 'graft.json');
  assert.ok(!existsSync(graft) || !readFileSync(graft, 'utf8').includes('settings'));
  // It goes on where the other ended, in float.
  using again = loadModel(golden('models', 'mistral'));
  using adapter = loadAdapter(again, without.result.adapter);
  assert.equal(adapter.roundings!.size, 0);
});

test('learned ranges leave a table alone that embeddings and head share: both are rounded alike', () => {
  using _ = scope();
  using model = loadModel(golden('models', 'llama3'));
  const fields = { weight: 'int4', group_size: 4, embedding: 'int8', learned_range: true };
  using adapter = attachMethods(
    model,
    [
      { type: 'lora', r: 2, target_modules: 'all-linear' },
      { type: 'qat', ...fields },
    ],
    1,
  );
  const scales = [...adapter.parts[1]!.parameters.keys()];
  assert.equal(scales.length, 21);
  assert.ok(!scales.some((key) => /lm_head|embed/.test(key)), scales.join());
  assert.deepEqual(
    ['model.embed_tokens', 'lm_head'].map((path) => adapter.roundings!.get(path)),
    [0, 1].map(() => ({ quantization: { format: 'int8', groupSize: 4, symmetric: true } })),
  );
});
