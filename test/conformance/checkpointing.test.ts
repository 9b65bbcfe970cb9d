/** Runs with gradient checkpointing: their losses, resuming after a stop, and the tokens that fit into memory. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { bytesPerToken, parseRecipe, runTraining, type TrainEvent, tokenBudget } from '../../src/train/index.ts';
import { golden, temporary } from '../support.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
});

const three = { num_virtual_tokens: 3 };

/** Methods, with the settings that use random numbers in training where they have any. */
const methods: Readonly<Record<string, object | object[]>> = {
  'LoRA, dropout': { type: 'lora', target_modules: 'all-linear', lora_dropout: 0.2 },
  'DoRA, dropout': { type: 'lora', use_dora: true, lora_dropout: 0.2 },
  AdaLoRA: { type: 'adalora', init_r: 4, target_r: 2, lora_dropout: 0.1 },
  'projected prefix, with a bottleneck': [
    { type: 'prefix', ...three, prefix_projection: true },
    { type: 'bottleneck', reduction_factor: 4, dropout: 0.1, stochastic_depth: 0.3 },
  ],
  Compacter: { type: 'bottleneck', config: 'compacter++', phm_dim: 2, reduction_factor: 8 },
  'P-tuning, dropout': { type: 'p-tuning', ...three, encoder_reparameterization_type: 'LSTM', encoder_dropout: 0.3 },
  full: { type: 'full' },
};

async function run(recipe: object, stopAfter = Infinity) {
  const events: TrainEvent[] = [];
  const steps = () => events.filter((event) => event.type === 'step');
  const stop = () => steps().length >= stopAfter;
  const result = await runTraining({ recipe: parseRecipe(recipe) }, (event) => events.push(event), stop).catch(
    (error: Error) => error,
  );
  return { result, handles: new Set(steps().map(({ handles }) => handles)) };
}

let compared = 0;

// llama3 has grouped-query attention.
for (const [name, method] of Object.entries(methods)) {
  test(`${name}: losses equal those without it, also with micro-batches, and a resumed run has the losses of one never stopped`, async () => {
    using dir = temporary();
    const recipe = (to: string, gradient_checkpointing: boolean) => ({
      model: golden('models', 'llama3'),
      method,
      data: { train: golden('peft', 'batches.lm.jsonl'), format: 'batches' },
      train: { steps: 4, lr: 5e-3, threads: 1, micro_tokens: 12, precision: 'float32', gradient_checkpointing },
      run: { dir: join(dir.path, to) },
    });
    const plain = await run(recipe('plain', false));
    const whole = await run(recipe('whole', true));
    const stopped = await run(recipe('cut', true), 2);
    const resumed = await run(recipe('cut', true));
    assert.match(String(stopped.result), /stopped after step 2/);
    for (const { result } of [plain, whole, resumed]) assert.ok(!(result instanceof Error), String(result));
    const [without, with_, again] = [plain, whole, resumed].map(
      ({ result }) => (result as { losses: number[] }).losses,
    );
    assert.equal(with_!.length, 4);
    with_!.forEach((loss, i) => {
      const error = Math.abs(loss / without![i]! - 1);
      assert.ok(error <= 1e-6, `step ${i + 1}: ${loss}, and ${without![i]} without it`);
    });
    assert.deepEqual(again, with_);
    assert.equal(whole.handles.size, 1, `live handles after every step: ${[...whole.handles]}`);
    compared += 4;
  });
}

test('with checkpointing, more tokens of a large model fit into memory', (t) => {
  const shape = { layers: 32, width: 4096, inner: 11008 };
  const [whole, kept] = [bytesPerToken(shape), bytesPerToken({ ...shape, checkpointed: true })];
  const [few, many] = [false, true].map((checkpointed) => tokenBudget({ ...shape, checkpointed }, 3.8e9, 4e9, 'mixed'));
  t.diagnostic(`of 7B shape: ${whole} bytes a token or ${kept}, ${few} tokens or ${many}`);
  assert.ok(kept < 0.25 * whole);
  assert.ok(many! > few! && many! <= 768);
});

test('every loss was compared', () => assert.equal(compared, 4 * Object.keys(methods).length));
