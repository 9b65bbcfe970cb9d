/** What a session promises: typed handles, results and events, stops within a token, a step or a batch, errors whole. */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { tinyBert, tinyModel } from '../../test/samples/tiny.ts';
import { golden, temporary } from '../../test/support.ts';
import { GraftError } from '../base/index.ts';
import type { OneTaskRecipe, RecipeInput, TrainEvent } from '../train/index.ts';
import { Session } from './index.ts';

const row = { ids: [1, 2, 3, 4], labels: [1, 2, 3, 4] };
const rows = Array.from({ length: 8 }, () => row);
const isInterrupted = (error: unknown) => error instanceof GraftError && error.kind === 'interrupted';

/** A folder with a tiny model, and recipes for it. */
function place() {
  const dir = temporary();
  const model = tinyModel(join(dir.path, 'model'));
  const recipe = (name: string, steps: number, train: RecipeInput['train'] = {}): OneTaskRecipe => ({
    model,
    method: { type: 'lora', target_modules: 'all-linear' },
    data: rows,
    train: { lr: 1e-3, steps, batch_size: 2, ...train },
    run: { dir: join(dir.path, name) },
  });
  return { dir, model, recipe, [Symbol.dispose]: () => dir[Symbol.dispose]() };
}

test('training: aborted within a step, with a checkpoint; the next job starts, and the same recipe resumes', async () => {
  using at = place();
  await using session = new Session();
  const controller = new AbortController();
  const steps: number[] = [];
  const long = session.train(at.recipe('long', 100_000), { signal: controller.signal });
  const next = session.train(at.recipe('next', 5));
  await assert.rejects(
    async () => {
      for await (const event of long) {
        if (event.type !== 'step') continue;
        steps.push(event.step);
        if (event.step === 3) controller.abort('enough');
      }
    },
    (error: GraftError) =>
      isInterrupted(error) && error.cause === 'enough' && existsSync(String(error.data.checkpoint)),
  );
  // Events that were on their way; the thread itself takes no step more than the one it was in.
  const aborted = await long.then(
    () => undefined,
    (error: GraftError) => error.data.step as number,
  );
  assert.ok(aborted !== undefined && aborted < 100_000 && steps.at(-1) === aborted, `${aborted}, ${steps.at(-1)}`);
  assert.equal((await next).losses.length, 5);
  const again = session.train(at.recipe('long', 100_000), { signal: AbortSignal.timeout(100) });
  await assert.rejects(again, isInterrupted);
});

test('threads, precision and random state are those of the job, not of the one before', async () => {
  using at = place();
  await using session = new Session();
  const threads: number[] = [];
  for (const [name, count] of [
    ['usual', undefined],
    ['one', 1],
    ['usual again', undefined],
  ] as const) {
    for await (const event of session.train(at.recipe(name, 1, { threads: count }))) {
      if (event.type === 'start') threads.push(event.threads);
    }
  }
  assert.equal(threads[1], 1);
  assert.equal(threads[2], threads[0]);
});

test('generation: pieces are the text; leaving the iteration and aborting stop it within a token', async () => {
  using at = place();
  await using session = new Session();
  await using model = await session.load(at.model);
  assert.deepEqual([model.info.family, model.info.task, model.info.quantize], ['llama', 'causal-lm', 'keep']);
  const answer = model.generate('Hello', { maxNewTokens: 12 });
  let text = '';
  for await (const piece of answer) text += piece;
  const result = await answer;
  assert.equal(text, result.text);
  assert.ok(result.ids.length > 0 && result.promptTokens > 0);

  const seen: string[] = [];
  for await (const piece of model.generate('Hello', { maxNewTokens: 400, temperature: 2, seed: 4 })) {
    seen.push(piece);
    if (seen.length === 2) break;
  }
  const controller = new AbortController();
  const aborted = model.generate('Hello', { maxNewTokens: 400, temperature: 2, seed: 4, signal: controller.signal });
  let count = 0;
  await assert.rejects(
    async () => {
      for await (const _ of aborted) if (++count === 2) controller.abort();
    },
    (error: GraftError) => isInterrupted(error) && (error.data.ids as number[]).length < 400,
  );
  assert.equal((await model.generate('Hello', { maxNewTokens: 12 })).text, result.text);
});

test('rows in memory and in streams are trained, evaluated and predicted as those of a file', async () => {
  using at = place();
  await using session = new Session();
  const kinds = ['ham', 'spam'] as const;
  const labelled = Array.from({ length: 24 }, (_, i) => {
    return { id: `m${i}`, text: i % 2 ? 'win a prize' : 'see you there', label: kinds[i % 2] };
  });
  async function* stream() {
    yield* labelled;
  }
  const file = join(at.dir.path, 'rows.jsonl');
  writeFileSync(file, labelled.map((labels) => JSON.stringify(labels)).join('\n'));
  const recipe = (name: string, data: OneTaskRecipe['data']): RecipeInput => ({
    ...at.recipe(name, 40, { lr: 1e-2, batch_size: 6 }),
    task: 'sequence-classification',
    data,
  });
  const results = [];
  for (const [name, data] of [
    ['file', file],
    ['memory', labelled],
    ['stream', { train: stream() }],
  ] as const) {
    results.push(await session.train(recipe(name, data)));
  }
  const [fromFile, fromMemory, fromStream] = results;
  assert.deepEqual(fromMemory!.losses, fromFile!.losses);
  assert.deepEqual(fromStream!.losses, fromFile!.losses);

  await using model = await session.load(at.model, { adapters: { mails: fromFile!.adapter } });
  const ids: unknown[] = [];
  const predicting = model.predict(stream(), { adapter: 'mails' });
  for await (const prediction of predicting) ids.push(prediction.id);
  const { predictions } = await predicting;
  assert.deepEqual(
    ids,
    labelled.map(({ id }) => id),
  );
  assert.deepEqual(
    predictions.map(({ text }) => text),
    labelled.map(({ text }) => text),
  );
  const right = predictions.filter(({ label }, i) => label === labelled[i]!.label).length;
  assert.equal(right, 24);
  const { metrics, rows: count } = await model.evaluate(labelled, { adapter: 'mails' });
  assert.equal(count, 24);
  assert.equal(metrics.find(({ name }) => name === 'accuracy')!.value, 1);
  await assert.rejects(model.predict([{ text: 'x' }, { txt: 'y' }], { adapter: 'mails' }), /rows\[1\]/);
});

test('answers are chosen among labels, with the accuracy where rows have their answer', async () => {
  using at = place();
  await using session = new Session();
  await using model = await session.load(at.model);
  const labels = [' yes', ' no'];
  const asked = [
    { id: 1, prompt: 'Is it?', completion: ' yes' },
    { id: 2, prompt: 'Was it?', completion: ' no' },
  ];
  const { classifications, accuracy } = await model.classify(asked, { labels });
  assert.deepEqual(
    classifications.map(({ id }) => id),
    [1, 2],
  );
  for (const { label, probabilities } of classifications) {
    assert.ok(labels.includes(label));
    assert.ok(Math.abs(Object.values(probabilities).reduce((a, b) => a + b) - 1) < 1e-9);
  }
  assert.equal(accuracy!.count, 2);
  await assert.rejects(
    model.classify([{ prompt: 'Is it?', completion: ' maybe' }], { labels }),
    /not one of the labels/,
  );
  await assert.rejects(model.classify(asked, { labels: [' yes'] }), /at least two different labels/);
});

test('adapters are added, switched and removed; unknown names and other models are refused with the place and a hint', async () => {
  using at = place();
  await using session = new Session();
  const { adapter } = await session.train(at.recipe('run', 10, { lr: 1e-2 }));
  await using model = await session.load(at.model);
  const ids = [[1, 5, 9, 2]];
  const [base] = await model.logits(ids);
  await model.addAdapter('mine', adapter);
  assert.deepEqual(model.info.adapters, ['mine']);
  const [switched] = await model.logits(ids, { adapter: 'mine' });
  assert.notDeepEqual(switched!.data, base!.data);
  assert.deepEqual(await model.logits(ids, { adapter }), [switched]);
  assert.deepEqual(await model.logits(ids), [base]);
  assert.deepEqual(base!.shape, [4, model.info.vocabSize]);
  await assert.rejects(model.logits(ids, { adapter: 'mien' }), (error: GraftError) => {
    assert.deepEqual([error.kind, error.place, error.hint], ['usage', 'adapter', "Did you mean 'mine'?"]);
    return true;
  });
  await assert.rejects(model.addAdapter('none', at.model), /adapter_config\.json/);
  await model.removeAdapter('mine');
  await assert.rejects(model.removeAdapter(adapter), /no adapter named/, 'a directory that was not added');
  await assert.rejects(model.logits(ids, { adapter: 'mine' }), /no adapter named 'mine'/);
  assert.deepEqual(await model.logits(ids), [base]);
  // Training takes the memory; the model is loaded again when it is next used.
  await session.train(at.recipe('other', 1));
  assert.deepEqual(await model.logits(ids), [base]);
  writeFileSync(join(at.model, 'config.json'), `${readFileSync(join(at.model, 'config.json'), 'utf8')}\n`);
  await session.train(at.recipe('third', 1));
  await assert.rejects(model.logits(ids), /changed after it was loaded/);
});

test('a session that is disposed while it trains stops after the step, saves a checkpoint and frees the directory', async () => {
  using at = place();
  const session = new Session();
  const training = session.train(at.recipe('run', 100_000));
  const behind = session.train(at.recipe('behind', 5));
  const failed = assert.rejects(behind, isInterrupted);
  const first = await new Promise<TrainEvent>((resolve) => {
    void (async () => {
      for await (const event of training) if (event.type === 'step') resolve(event);
    })().catch(() => {});
  });
  assert.equal(first.type, 'step');
  await session[Symbol.asyncDispose]();
  await assert.rejects(training, isInterrupted);
  await failed;
  assert.ok(!existsSync(join(at.dir.path, 'run', 'graft.lock')));
  assert.equal(readdirSync(join(at.dir.path, 'run', 'checkpoints')).length, 1);
  await assert.rejects(session.doctor(), /session has been disposed/);
  await using other = new Session();
  for await (const event of other.train(at.recipe('run', 100_000))) {
    if (event.type === 'memory') continue;
    assert.ok(event.type === 'start' && event.step > 0, 'resumed');
    break;
  }
});

test('two sessions at once do not change each other’s losses', async () => {
  using at = place();
  const settings = { batch_size: 2, lr: 1e-2, seed: 3 } as const;
  const withDropout = (name: string): RecipeInput => ({
    ...at.recipe(name, 60, settings),
    method: { type: 'lora', target_modules: 'all-linear', lora_dropout: 0.5 },
  });
  await using one = new Session();
  await using two = new Session();
  const alone = (await one.train(withDropout('alone'))).losses;
  const [first, second] = await Promise.all([one.train(withDropout('first')), two.train(withDropout('second'))]);
  assert.deepEqual(first.losses, alone);
  assert.deepEqual(second.losses, alone);
});

test('a mistake in a recipe rejects, with all mistakes; a job that nobody waits for is not silent', async () => {
  await using session = new Session();
  const wrong = {
    model: 'x',
    method: { type: 'lora', rank: 8 },
    data: [],
    run: { dir: 'y' },
  } as unknown as RecipeInput;
  await assert.rejects(session.train(wrong), (error: GraftError) => {
    assert.equal(error.kind, 'usage');
    assert.match(error.message, /rank/);
    return true;
  });
  const running = session.doctor();
  await running;
  assert.throws(() => running[Symbol.asyncIterator](), /iterated once, and before it is awaited/);
});

test('options that do not exist or have wrong values are refused, also from JavaScript', async () => {
  using at = place();
  await using session = new Session();
  await using model = await session.load(at.model);
  const untyped = model as unknown as Record<string, (...args: unknown[]) => Promise<unknown>>;
  const wrong: [string, unknown[], RegExp][] = [
    [
      'generate',
      ['a', { max_new_tokens: 3 }],
      /generate: unknown key 'max_new_tokens' \(did you mean 'maxNewTokens'\?\)/,
    ],
    ['generate', ['a', { temperature: 'hot' }], /temperature: must be a number, but is "hot"/],
    ['generate', [[], {}], /there are no messages/],
    ['predict', [[], { adaptor: 'x' }], /unknown key 'adaptor' \(did you mean 'adapter'\?\)/],
    ['classify', [[], {}], /labels is missing/],
    ['evaluate', [[], { maxLength: 0 }], /maxLength/],
    ['logits', ['1 2', {}], /ids must be rows of token ids/],
    ['merge', [{ adapter: 'a' }], /out is missing/],
  ];
  for (const [call, args, message] of wrong) {
    await assert.rejects(untyped[call]!.apply(model, args), (error: GraftError) => {
      assert.equal(error.kind, 'usage');
      assert.match(error.message, message);
      return true;
    });
  }
  await assert.rejects(session.load(at.model, { quantise: 'keep' } as never), /unknown key 'quantise'/);
});

test('a job that waits for another one is aborted at once', async () => {
  using at = place();
  await using session = new Session();
  const stopLong = new AbortController();
  const long = session.train(at.recipe('long', 100_000), { signal: stopLong.signal });
  let step = 0;
  const failed = assert.rejects(async () => {
    for await (const event of long) if (event.type === 'step') step = event.step;
  }, isInterrupted);
  while (step === 0) await new Promise((resolve) => setTimeout(resolve, 5));
  const waiting = session.train(at.recipe('waiting', 5), { signal: AbortSignal.timeout(10) });
  await assert.rejects(waiting, isInterrupted);
  const stepThen = step;
  while (step === stepThen) await new Promise((resolve) => setTimeout(resolve, 5));
  stopLong.abort();
  await failed;
  assert.ok(!existsSync(join(at.dir.path, 'waiting', 'events.jsonl')), 'it never began');
});

test('predicting, evaluating and choosing end within a batch when they are aborted', async () => {
  using at = place();
  await using session = new Session();
  const labelled = Array.from({ length: 3000 }, (_, i) => ({
    text: `item ${i} is here`,
    label: i % 2 ? 'a' : 'b',
  }));
  const { adapter } = await session.train({
    ...at.recipe('run', 1),
    task: 'sequence-classification',
    data: labelled.slice(0, 8),
  });
  await using model = await session.load(at.model);
  const options = { adapter };
  const all = await model.predict(labelled, options);
  assert.equal(all.predictions.length, 3000);
  const stop = new AbortController();
  let predicted = 0;
  await assert.rejects(async () => {
    for await (const _ of model.predict(labelled, { ...options, signal: stop.signal })) {
      predicted++;
      stop.abort();
    }
  }, isInterrupted);
  assert.ok(predicted < 3000, `${predicted} predictions`);
  const questions = labelled.map(({ text }) => ({ prompt: text, completion: ' a' }));
  const long = [
    (signal: AbortSignal) => model.evaluate(labelled, { ...options, signal }),
    (signal: AbortSignal) => model.classify(questions, { labels: [' a', ' b'], signal }),
  ];
  for (const start of long) {
    const controller = new AbortController();
    const batches: number[] = [];
    let total = 0;
    await assert.rejects(async () => {
      for await (const progress of start(controller.signal)) {
        batches.push(progress.done);
        total = progress.total;
        controller.abort();
      }
    }, isInterrupted);
    assert.ok(batches.at(-1)! < total, `${batches} of ${total}`);
  }
});

test('what cannot be sent, is not a row, or never ends: refused or stopped, and the session goes on', async () => {
  using at = place();
  await using session = new Session();
  await using model = await session.load(at.model, { threads: 1 });
  const usage = (pattern: RegExp) => (error: GraftError) => error.kind === 'usage' && pattern.test(error.message);
  await assert.rejects(model.evaluate([{ text: 'a', f() {} }]), usage(/cannot be sent to the engine thread/));
  await assert.rejects(model.generate('a', { threads: 100_000 }), usage(/threads/));
  await assert.rejects(model.predict(5 as never), usage(/rows must be/));
  await assert.rejects(
    session.train({ ...at.recipe('x', 1), data: { trian: 'x' } as never }),
    usage(/data\.train is missing|trian/),
  );
  await assert.rejects(session.train({ ...at.recipe('x', 1), data: undefined as never }), usage(/data is missing/));
  async function* endless() {
    for (;;) {
      await new Promise((resolve) => setTimeout(resolve, 1));
      yield { text: 'a' };
    }
  }
  await assert.rejects(model.evaluate(endless(), { signal: AbortSignal.timeout(30) }), isInterrupted);
  await assert.rejects(
    session.train({ ...at.recipe('x', 1), data: endless() }, { signal: AbortSignal.timeout(30) }),
    isInterrupted,
  );
  interface Ticket {
    readonly text: string;
  }
  const tickets = new Set<Ticket>([{ text: 'one two' }]);
  assert.equal((await model.evaluate(tickets)).rows, 1);
  // Calls run in the order in which they are made.
  const evaluated = model.evaluate([{ text: 'one two' }]);
  const disposed = model[Symbol.asyncDispose]();
  assert.equal((await evaluated).rows, 1);
  await disposed;
  await assert.rejects(model.generate('a'), /has been disposed/);
});

test('a conversation is checked as rows are; a system message makes a chat; an encoder chooses no answers', async () => {
  using at = place();
  await using session = new Session();
  await using model = await session.load(at.model);
  const plain = await model.generate('Hello', { maxNewTokens: 1 });
  const chat = await model.generate('Hello', { maxNewTokens: 1, system: 'Be brief.' });
  assert.ok(chat.promptTokens > plain.promptTokens);
  const parts = [{ role: 'user', content: [{ type: 'text', text: 'Hello' }] }] as never;
  const whole = [{ role: 'user', content: 'Hello' }];
  const tokens = async (prompt: typeof whole) => (await model.generate(prompt, { maxNewTokens: 1 })).promptTokens;
  assert.equal(await tokens(parts), await tokens(whole));
  await assert.rejects(model.generate([{ role: 'user', content: 5 }] as never), /content/);
  await assert.rejects(model.generate([]), /there are no messages/);
  const labels = ['a', 'b'];
  await assert.rejects(model.classify([], { labels }), /there are no rows/);
  await using encoder = await session.load(tinyBert(join(at.dir.path, 'bert')));
  await assert.rejects(
    encoder.classify([{ prompt: 'a', completion: 'a' }], { labels }),
    /graft predict|language model/,
  );
  assert.equal((await encoder.embed(['a', 'b'])).length, 2);
  assert.deepEqual(await encoder.embed([]), []);
  await assert.rejects(encoder.embed(['a', '']), /text 2 has no vector: the row has nothing to predict/);
  const { adapter } = await session.train(at.recipe('run', 1));
  await model.addAdapter('mine', adapter);
  await session.train(at.recipe('other', 1));
  await model.removeAdapter('mine');
  assert.deepEqual(model.info.adapters, []);
});

test('a model in blocks takes its inputs rounded to 8 bits where that is asked for; one without blocks refuses', async () => {
  using at = place();
  await using session = new Session();
  await assert.rejects(
    session.load(at.model, { activation: 'q8' }),
    (error) => error instanceof GraftError && error.kind === 'usage' && /this model has none/.test(error.message),
  );
  const logits: Buffer[] = [];
  for (const activation of [undefined, 'exact', 'q8'] as const) {
    await using model = await session.load(golden('gguf', 'llama.gguf'), { ...(activation && { activation }) });
    const out = join(at.dir.path, `${activation}.safetensors`);
    await model.writeLogits([[5, 9, 2, 7]], { out });
    logits.push(readFileSync(out));
  }
  assert.ok(logits[0]!.equals(logits[1]!));
  assert.ok(!logits[0]!.equals(logits[2]!));
});
