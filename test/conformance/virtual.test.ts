/** Virtual tokens in use: generation, one prefix under two heads, initial texts, runs, and room in the context. */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { headFits, loadAdapter, saveAdapter } from '../../src/adapters/index.ts';
import { tokenizerOf } from '../../src/data/index.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { generate, scoreChoices } from '../../src/generate/index.ts';
import { attachMethods, type MethodChoice } from '../../src/methods/index.ts';
import { loadModel } from '../../src/models/index.ts';
import { type Embedding, type Model, moduleAt, packTokens } from '../../src/nn/index.ts';
import { noGrad, scope, Tensor } from '../../src/tensor/index.ts';
import { parseRecipe, runTraining, type TrainEvent } from '../../src/train/index.ts';
import { golden, logitsOf, numbers, readTensors, relativeError, temporary } from '../support.ts';
import { perturb } from './cases.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
});

const p = (type: MethodChoice['type'], more: object = {}): MethodChoice => ({ type, num_virtual_tokens: 5, ...more });

const promptOf = (model: Model, length: number) =>
  Array.from({ length }, (_, i) => (i * i * 7 + 3 * i + 1) % model.vocabSize);

const lists: Readonly<Record<string, readonly MethodChoice[]>> = {
  prompt: [p('prompt', { prompt_tuning_init: 'RANDOM' })],
  prefix: [p('prefix')],
  'projected prefix': [p('prefix', { prefix_projection: true })],
  'P-tuning': [p('p-tuning', { encoder_reparameterization_type: 'LSTM' })],
  'prefix + prompt + prefix + LoRA': [
    p('prefix'),
    p('prompt', { num_virtual_tokens: 3 }),
    p('prefix', { num_virtual_tokens: 2 }),
    { type: 'lora', init_lora_weights: false },
  ],
};

let decoded = 0;

for (const base of ['models/llama3', 'models/mistral', 'models/qwen3', 'families/gpt2', 'gguf/llama.gguf']) {
  for (const [name, choices] of Object.entries(lists)) {
    test(`${name} on ${base}: tokens generated with a cache are the argmax of a full pass at every step`, () => {
      using model = loadModel(golden(...base.split('/')), { quantize: 'keep' });
      using adapter = attachMethods(model, choices, 3);
      perturb(adapter, 4);
      logitsOf(model, promptOf(model, 30)); // the first forward pass fills caches
      const live = currentEngine().native.memory().handles;
      for (const [length, prefillTokens] of [
        [1, 512],
        [17, 512],
        [17, 4],
        [17, 1],
      ] as const) {
        const row = promptOf(model, length);
        for (const id of generate(model, row, { maxNewTokens: 8, temperature: 0, prefillTokens })) {
          const all = logitsOf(model, row);
          const last = all.subarray(all.length - model.vocabSize);
          // Of nearly equal logits, either may be chosen.
          const best = last.reduce((a, b) => Math.max(a, b));
          assert.ok(best - last[id]! <= 1e-4, `token ${row.length} is ${id}, ${best - last[id]!} below the best`);
          row.push(id);
          decoded++;
        }
      }
      assert.equal(currentEngine().native.memory().handles, live, 'live handles');
    });
  }
}

test('every token was compared', () => assert.equal(decoded, 5 * 5 * 4 * 8));

test('packed rows attend to their own virtual tokens only', () => {
  for (const [name, choices] of Object.entries(lists)) {
    using model = loadModel(golden('models', 'mistral'));
    using _ = attachMethods(model, choices, 3);
    const rows = [11, 1, 14].map((length) => promptOf(model, length));
    const together = logitsOf(model, ...rows);
    let at = 0;
    for (const row of rows) {
      const alone = logitsOf(model, row);
      const error = relativeError(together.subarray(at, at + alone.length), alone);
      assert.ok(error <= 2e-6, `${name}: the logits differ by ${error}`);
      at += alone.length;
    }
  }
});

test('one prefix serves two tasks on one base, each under its head', async () => {
  using dir = temporary();
  const saved = join(dir.path, 'shared');
  const base = golden('models', 'llama3');
  using first = loadModel(base, { task: 'sequence-classification', labels: ['ham', 'spam'] });
  using trained = attachMethods(first, [p('prefix')], 1);
  perturb(trained, 2);
  saveAdapter(first, trained, saved, { base });
  assert.ok(headFits(first, saved));

  using second = loadModel(base, { task: 'token-classification', labels: ['O', 'B', 'I', 'X', 'Y'], seed: 5 });
  assert.ok(!headFits(second, saved));
  assert.throws(() => loadAdapter(second, saved), /score\.weight/);
  using shared = loadAdapter(second, saved, 'own');
  const of = (key: string, from: typeof shared) => numbers(from.parameters.get(key)!);
  assert.deepEqual(of('prompt_embeddings', shared), of('prompt_embeddings', trained));
  assert.deepEqual(shared.parameters.get('score.weight')!.shape, [5, second.width]);

  // Without their heads, the two models compute the same.
  const hidden = [first, second].map((model) =>
    noGrad(() => {
      using _ = scope();
      return numbers(model.hidden(packTokens([promptOf(model, 9)])));
    }),
  );
  assert.deepEqual(hidden[1], hidden[0]);
  // A run of the second task can begin from the prefix of the first.
  const { result, messages } = await run({
    model: base,
    task: 'token-classification',
    labels: second.task.labels,
    adapter: saved,
    method: p('prefix'),
    data: batches('tags'),
    train: { steps: 1, lr: 1e-9, threads: 1 },
    run: { dir: join(dir.path, 'run') },
  });
  assert.ok(!(result instanceof Error), String(result));
  assert.match(messages.join('\n'), /the head of .* is for another task: the model keeps its own/);
  const { tensors } = readTensors(join(result.adapter, 'adapter_model.safetensors'));
  assert.ok(relativeError(numbers(tensors.get('prompt_embeddings')!), of('prompt_embeddings', trained)) <= 1e-6);
  assert.deepEqual(tensors.get('base_model.score.weight')!.shape, [5, second.width]);
});

test('a prompt begins with the embeddings of a text, repeated or cut, and a prefix with its keys and values', () => {
  using model = loadModel(golden('gguf', 'llama.gguf'));
  const tokenizer = tokenizerOf(golden('gguf', 'llama.gguf'));
  const encode = (text: string) => [...tokenizer.encode(text)];
  const text = 'Is it spam?';
  const ids = encode(text);
  const table = moduleAt(model.root, model.sites.embeddings) as Embedding;
  for (const count of [2, ids.length + 3]) {
    using _ = scope();
    const more = { num_virtual_tokens: count, prompt_tuning_init: 'TEXT', prompt_tuning_init_text: text };
    using adapter = attachMethods(model, [p('prompt', more)], 0, { encode });
    const want = Array.from({ length: count }, (_, i) => BigInt(ids[i % ids.length]!));
    const vectors = table.forward(Tensor.from(BigInt64Array.from(want)));
    assert.deepEqual(numbers(adapter.parameters.get('prompt_embeddings')!), numbers(vectors));
  }
  // A prefix from the first part of a row replaces that part. By default its length is that of the text.
  const rest = encode('and why not');
  const whole = logitsOf(model, [...ids, ...rest]).slice(-rest.length * model.vocabSize);
  const more = { num_virtual_tokens: undefined, init_text: text };
  using prefix = attachMethods(model, [p('prefix', more)], 0, { encode });
  const error = relativeError(logitsOf(model, rest), whole);
  assert.ok(error <= 5e-6, `the logits behind the text differ by ${error}`);
  // Adapters that are attached already do not change the initial values.
  using other = attachMethods(model, [p('prefix', more)], 0, { encode });
  const [a, b] = [prefix, other].map(({ parts }) => numbers(parts[0]!.savedTensors!().get('prompt_embeddings')!));
  assert.deepEqual(b, a);
  assert.equal(prefix.parts[0]!.config.num_virtual_tokens, ids.length);
  using prompt = attachMethods(model, [{ type: 'prompt', prompt_tuning_init_text: text }], 0, { encode });
  assert.equal(prompt.parts[0]!.config.num_virtual_tokens, ids.length);
  using _ = scope();
  const first = table.forward(Tensor.from(BigInt64Array.from(ids, BigInt)));
  assert.deepEqual(numbers(prompt.parameters.get('prompt_embeddings')!), numbers(first));
});

test('a prefix from a text is trained relative to the size of each layer’s keys and values, and saved as absolute values', () => {
  using _ = scope();
  using dir = temporary();
  using model = loadModel(golden('models', 'llama3'));
  const row = promptOf(model, 12);
  {
    using adapter = attachMethods(model, [p('prefix', { init_text: 'a text' })], 0, { encode: () => [3, 1, 4, 1, 5] });
    const units = numbers(adapter.parameters.get('prompt_embeddings')!);
    const size = model.kvHeads * model.headDim;
    for (let slot = 0; slot < 2 * model.layers; slot++) {
      const own = units.filter((_, i) => Math.floor(i / size) % (2 * model.layers) === slot);
      assert.ok(Math.abs(own.reduce((sum, x) => sum + x * x, 0) / own.length - 1) < 1e-5);
    }
    perturb(adapter, 6);
    const trained = logitsOf(model, row);
    saveAdapter(model, adapter, dir.path, { base: 'b' });
    adapter.detach();
    using loaded = loadAdapter(model, dir.path);
    assert.ok(relativeError(logitsOf(model, row), trained) <= 1e-6);
    assert.equal(loaded.parts[0]!.savedTensors, undefined);
  }
});

test('a prefix that begins at zero receives attention, and has gradients', () => {
  using _ = scope();
  using model = loadModel(golden('models', 'llama3'));
  const row = promptOf(model, 12);
  const plain = logitsOf(model, row);
  for (const more of [{}, { prefix_projection: true }]) {
    using adapter = attachMethods(model, [p('prefix', { init_weights: 'zero', ...more })], 0);
    const made = adapter.parts[0]!.derived?.value() ?? adapter.parameters.get('prompt_embeddings')!;
    assert.ok(numbers(made).every((value) => value === 0));
    assert.ok(relativeError(logitsOf(model, row), plain) > 1e-3);
    const tokens = packTokens([row]);
    model.lossSum(model.hidden(tokens), tokens.ids).backward();
    const moved = [...adapter.parameters.values()].filter(({ grad }) => grad && numbers(grad).some((g) => g !== 0));
    assert.ok(moved.length > 0);
  }
});

async function run(recipe: object, stopAfter = Infinity) {
  const events: TrainEvent[] = [];
  const stop = () => events.filter(({ type }) => type === 'step').length >= stopAfter;
  const result = await runTraining({ recipe: parseRecipe(recipe) }, (event) => events.push(event), stop).catch(
    (error: Error) => error,
  );
  const messages = events.flatMap((event) => (event.type === 'warning' ? [event.message] : []));
  return { result, messages };
}

const batches = (kind: string) => ({ train: golden('peft', `batches.${kind}.jsonl`), format: 'batches' });

const encoder = p('p-tuning', { encoder_reparameterization_type: 'LSTM', encoder_dropout: 0.3 });

for (const [name, method, folder] of [
  ['P-tuning', encoder, ''],
  ['P-tuning + LoRA', [encoder, { type: 'lora', lora_dropout: 0.1 }], '0-p-tuning'],
  ['prefix + bottleneck', [p('prefix', { prefix_projection: true }), { type: 'bottleneck' }], '0-prefix'],
] as const) {
  test(`${name}: a resumed run has the losses of one never stopped, and a saved adapter is trained further with its encoder`, async () => {
    const recipe = (dir: string, more: object = {}) => ({
      model: golden('models', 'llama3'),
      method,
      data: batches('lm'),
      train: { steps: 6, lr: 1e-2, threads: 1 },
      run: { dir },
      ...more,
    });
    using dir = temporary();
    const whole = await run(recipe(join(dir.path, 'whole')));
    const cut = recipe(join(dir.path, 'cut'));
    const { result: stopped } = await run(cut, 3);
    assert.match(String(stopped), /stopped after step 3/);
    const { result: resumed } = await run(cut);
    assert.ok(!(whole.result instanceof Error) && !(resumed instanceof Error));
    assert.equal(resumed.resumedFrom, 3);
    assert.deepEqual(resumed.losses, whole.result.losses);

    const { result: again } = await run(recipe(join(dir.path, 'again'), { adapter: resumed.adapter }));
    assert.ok(!(again instanceof Error), String(again));
    const keys = (adapter: string) => [...readTensors(join(adapter, folder, 'training.safetensors')).tensors.keys()];
    assert.deepEqual(keys(again.adapter), keys(resumed.adapter));
    assert.ok(keys(again.adapter).some((key) => /lstm_head|transform/.test(key)));
  });
}

test('rows of several tasks: a run from PEFT’s adapter has the losses of PEFT’s run', async () => {
  using _ = scope();
  using dir = temporary();
  const file = join(dir.path, 'tasks.jsonl');
  const lines = readFileSync(golden('peft', 'batches.lm.jsonl'), 'utf8').trim().split('\n').slice(0, 20);
  const steps = lines.map((line, i) => ({
    rows: (JSON.parse(line) as { rows: object[] }).rows.map((row, j) => ({ ...row, task: (i + j) % 3 })),
  }));
  writeFileSync(file, steps.map((step) => JSON.stringify(step)).join('\n'));
  const adapter = golden('peft', 'multitask-llama3');
  const recipe = (train: string, runName = 'run') => ({
    model: golden('models', 'llama3'),
    adapter,
    method: p('multitask-prompt'),
    data: { train, format: 'batches' },
    train: { lr: 1e-2, schedule: 'constant', warmup_steps: 0, weight_decay: 0, threads: 1 },
    run: { dir: join(dir.path, runName) },
  });
  const { result } = await run(recipe(file));
  assert.ok(!(result instanceof Error), String(result));
  const want = numbers(readTensors(join(adapter, 'golden.safetensors')).tensors.get('curve')!);
  assert.equal(result.losses.length, want.length);
  want.forEach((loss, i) => {
    assert.ok(Math.abs(result.losses[i]! / loss - 1) <= 1e-3, `step ${i + 1}: ${result.losses[i]}, PEFT's ${loss}`);
  });
  const { result: untold } = await run(recipe(golden('peft', 'batches.lm.jsonl'), 'untold'));
  assert.match(String(untold), /the rows have no task number, and the prompt has 3 tasks/);
});

test('a learning rate that is too low for the initial values is warned about, and no other', async () => {
  using dir = temporary();
  let warned = 0;
  for (const [choice, lr, expected] of [
    [p('prefix'), 2e-4, /a prefix that begins at random hardly learns at a learning rate of 0.0002: begin from a text/],
    [p('prompt', { prompt_tuning_init: 'RANDOM' }), 1e-3, /a prompt that begins at random/],
    [p('prefix'), 1e-2, undefined],
    [p('prefix', { init_weights: 'zero' }), 2e-4, /a prefix learns slowly at a learning rate of 0.0002/],
    [p('prompt'), 2e-4, /a prompt learns slowly/],
    [p('prompt'), 3e-3, undefined],
    [p('prefix', { prefix_projection: true }), 2e-4, undefined],
  ] as const) {
    const { messages } = await run({
      model: golden('models', 'llama3'),
      method: choice,
      data: batches('lm'),
      train: { steps: 1, lr, threads: 1 },
      run: { dir: join(dir.path, String(warned++)) },
    });
    if (expected) assert.match(messages.join('\n'), expected);
    else assert.deepEqual(messages, []);
  }
  assert.equal(warned, 7);
});

test('virtual tokens take room in the context: rows are truncated to the rest, and prompts that do not fit are refused', async () => {
  using dir = temporary();
  const file = join(dir.path, 'long.jsonl');
  const ids = Array.from({ length: 64 }, (_, i) => 3 + (i % 50));
  writeFileSync(file, `${JSON.stringify({ ids })}\n`);
  const { result, messages } = await run({
    model: golden('families', 'gpt2'),
    method: p('prompt'),
    data: { train: file },
    train: { steps: 1, threads: 1 },
    run: { dir: join(dir.path, 'run') },
  });
  assert.ok(!(result instanceof Error), String(result));
  assert.match(messages.join(), /1 row was longer than max_length; 5 tokens were cut/);

  using model = loadModel(golden('families', 'gpt2'));
  using _ = attachMethods(model, [p('prefix'), p('prompt')], 0);
  const asked = () => generate(model, ids.slice(0, 54), { maxNewTokens: 1 }).next();
  assert.throws(asked, /54 tokens and 10 virtual tokens, .*context length of 64/);
  assert.ok(!generate(model, ids.slice(0, 53), { maxNewTokens: 1, temperature: 0 }).next().done);
  assert.throws(
    () => scoreChoices(model, [ids.slice(0, 54)], [[[1, 2]]]),
    /10 virtual tokens, 54 tokens of the prompt and 2 of/,
  );
  assert.throws(
    () => attachMethods(model, [p('prompt', { num_virtual_tokens: 54 })], 0),
    /54 virtual tokens beside the 10 that are attached already leave no room/,
  );
  assert.throws(() => attachMethods(model, [{ type: 'prompt' }], 0), /num_virtual_tokens is missing/);
  assert.equal(model.ports.virtualLength, 10);
});

test('an initial text needs a tokenizer', async () => {
  using dir = temporary();
  const { result } = await run({
    model: golden('models', 'llama3'),
    method: p('prefix', { init_text: 'Is it spam?' }),
    data: batches('lm'),
    run: { dir: dir.path },
  });
  assert.match(String(result), /tokenizer/);
});
