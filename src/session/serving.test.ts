/** What serving promises: many requests at once, each as if alone; adapters come and go; callers go away; queues end. */
import assert from 'node:assert/strict';
import { cpSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { tinyModel } from '../../test/samples/tiny.ts';
import { temporary } from '../../test/support.ts';
import { GraftError } from '../base/index.ts';
import { tokenizerOf } from '../data/index.ts';
import { type Serving, Session } from './index.ts';

const row = { ids: [1, 2, 3, 4, 9, 8], labels: [1, 2, 3, 4, 9, 8] };
const types = ['lora', 'prefix', 'prompt', 'ia3', 'bottleneck'] as const;

/** A folder with a tiny model, and an adapter of each type that was trained on it. */
async function place(session: Session) {
  const dir = temporary();
  const model = tinyModel(join(dir.path, 'model'));
  const adapters = await Promise.all(
    types.map(async (type, i) => {
      const virtual = type === 'prefix' || type === 'prompt' ? { num_virtual_tokens: 3 + i } : {};
      const { adapter } = await session.train({
        model,
        method: { type, ...virtual } as { type: 'lora' },
        data: [{ ids: row.ids.map((id) => id + i), labels: row.labels }],
        train: { lr: 0.5, steps: 4, batch_size: 1 },
        run: { dir: join(dir.path, type) },
      });
      return [type, adapter!] as const;
    }),
  );
  return {
    dir,
    model,
    adapters: Object.fromEntries(adapters) as Record<string, string>,
    [Symbol.dispose]: () => dir[Symbol.dispose](),
  };
}

const promptOf = (i: number) => Array.from({ length: 5 + 7 * (i % 6) }, (_, t) => 1 + ((3 * t + 5 * i) % 90));

test('requests with adapters of all kinds and the base, at once, answer as `generate` does one by one', async () => {
  await using session = new Session();
  using at = await place(session);
  await using model = await session.load(at.model, { adapters: at.adapters });
  const tokenizer = tokenizerOf(at.model);
  const asked = Array.from({ length: 18 }, (_, i) => ({
    text: 'One two three four. '.repeat(1 + (i % 5)) + i,
    options: {
      adapter: [undefined, ...types][i % 6],
      maxNewTokens: 12 + (i % 5),
      ...(i % 3 === 2 && { temperature: 1.2, seed: i }),
    },
  }));
  const alone: (readonly number[])[] = [];
  for (const { text, options } of asked) alone.push((await model.generate(text, options)).ids);
  assert.ok(new Set(alone.map(String)).size > 12, 'answers differ');
  await using serving = model.serve({ maxBatchTokens: 24, maxRunning: 9, kvMemory: 2 ** 22 });
  const together = await Promise.all(
    asked.map(({ text, options }) => serving.submit({ promptIds: [...tokenizer.encode(text)], ...options })),
  );
  for (const [i, { ids }] of together.entries()) assert.deepEqual(ids, alone[i], JSON.stringify(asked[i]));
  const { tokens, running, waiting, adapters, steps } = await serving.stats();
  assert.deepEqual([running, waiting], [0, 0]);
  assert.deepEqual(adapters.registered, [...types].sort());
  assert.equal(Object.keys(tokens).length, 6);
  // Far fewer passes than tokens: rows of several adapters shared them.
  const generated = together.reduce((sum, { newTokens }) => sum + newTokens, 0);
  assert.ok(steps < generated / 2, `${steps} passes for ${generated} tokens`);
});

test('adapters leave memory when others need it, and come back; a job that frees the model delays requests only', async () => {
  await using session = new Session();
  using at = await place(session);
  await using model = await session.load(at.model, { adapters: at.adapters });
  const answers = new Map<string, readonly number[]>();
  const ask = (serving: Serving, adapter: string, maxNewTokens = 10) =>
    serving.submit({ promptIds: promptOf(2), adapter, maxNewTokens, eosIds: [] });
  {
    await using serving = model.serve();
    for (const type of types) answers.set(type, (await ask(serving, type)).ids);
    assert.deepEqual((await serving.stats()).adapters.resident, [...types].sort());
  }
  await using serving = model.serve({ adapterMemory: 0 });
  for (const type of [...types, ...types]) {
    assert.deepEqual((await ask(serving, type)).ids, answers.get(type), type);
    const { resident } = (await serving.stats()).adapters;
    assert.ok(resident.length === 0 || String(resident) === type, String(resident));
  }
  const long = await ask(serving, 'lora', 150);
  const again = ask(serving, 'lora', 150);
  let trained: PromiseLike<unknown> | undefined;
  for await (const _ of again) {
    trained ??= session.train({
      model: at.model,
      method: { type: 'lora' },
      data: [row],
      train: { steps: 1, batch_size: 1 },
      run: { dir: join(at.dir.path, 'meanwhile') },
    });
  }
  await trained;
  assert.deepEqual((await again).ids, long.ids);
});

test('a mixture of LoRA adapters is their weighted sum, and stands in one batch with others', async () => {
  await using session = new Session();
  using at = await place(session);
  await using model = await session.load(at.model, { adapters: at.adapters });
  await using serving = model.serve();
  const request = { promptIds: promptOf(4), maxNewTokens: 12, eosIds: [] };
  const lora = (weight: number) => [{ name: 'lora', weight }];
  const [one, whole, none, halves, base] = await Promise.all([
    serving.submit({ ...request, adapter: 'lora' }),
    serving.submit({ ...request, mixture: lora(1) }),
    serving.submit({ ...request, mixture: lora(0) }),
    serving.submit({ ...request, mixture: [...lora(0.5), ...lora(0.5)] }),
    serving.submit(request),
  ]);
  assert.notDeepEqual(one.ids, base.ids);
  assert.deepEqual(whole.ids, one.ids);
  assert.deepEqual(halves.ids, one.ids);
  assert.deepEqual(none.ids, base.ids);
  await assert.rejects(serving.submit({ ...request, mixture: [{ name: 'prefix', weight: 1 }] }), { kind: 'usage' });
  await assert.rejects(serving.submit({ ...request, adapter: 'lora', mixture: lora(1) }), /not both/);
});

test('a second turn computes only what is new; pieces are the text; log-probabilities are those of the tokens', async () => {
  await using session = new Session();
  using at = await place(session);
  await using model = await session.load(at.model, { adapters: at.adapters });
  await using serving = model.serve();
  for (const adapter of [undefined, 'prefix']) {
    const promptIds = Array.from({ length: 100 }, (_, i) => 1 + ((7 * i) % 80));
    const first = serving.submit({ promptIds, adapter, maxNewTokens: 30, logprobs: 2 });
    let [text, logprobs] = ['', 0];
    for await (const delta of first) {
      text += delta.text;
      logprobs += delta.logprobs!.length;
      for (const [i, { id, logprob, top }] of delta.logprobs!.entries()) {
        assert.equal(id, delta.ids[i]);
        assert.equal(top.length, 2);
        assert.ok(Math.abs(logprob - top[0]!.logprob) < 1e-6 && logprob <= 0);
      }
    }
    const end = await first;
    assert.equal(text, end.text);
    assert.equal(logprobs, end.newTokens);
    assert.equal(end.cachedTokens, 0);
    const second = await serving.submit({ promptIds: [...promptIds, ...end.ids, 5, 6], adapter, maxNewTokens: 3 });
    assert.ok(second.cachedTokens > 90, `${second.cachedTokens} of ${second.promptTokens}`);
  }
});

test('a caller that goes away, a deadline, a full queue, and names that nobody knows', async () => {
  await using session = new Session();
  using at = await place(session);
  await using model = await session.load(at.model);
  await using serving = model.serve({ maxRunning: 1, maxQueue: 2 });
  const long = { promptIds: [5, 6, 7], maxNewTokens: 300, temperature: 2, eosIds: [] };
  const controller = new AbortController();
  const first = serving.submit(long, { signal: controller.signal });
  for await (const _ of first) break;
  assert.equal((await first).reason, 'interrupted');
  const waiting: ReturnType<typeof serving.submit>[] = [];
  const running = serving.submit(long);
  for await (const _ of running) {
    waiting.push(serving.submit(long), serving.submit(long));
    await assert.rejects(
      serving.submit(long),
      (error) => error instanceof GraftError && error.data.reason === 'queue-full',
    );
    waiting[1]!.catch(() => {});
    break;
  }
  // The first of those that wait has begun, so the queue has room again.
  for await (const _ of waiting[0]!) break;
  await assert.rejects(serving.submit({ ...long, adapter: 'nobody' }), /there is no adapter named 'nobody'/);
  await assert.rejects(serving.submit({ ...long, promptIds: [] }), /no tokens/);
  await assert.rejects(serving.submit({ ...long, maxTokens: 3 } as never), /maxTokens/);
  const late = await serving.submit({ ...long, deadlineMs: 0 });
  assert.equal(late.reason, 'deadline');
});

test('an adapter is replaced in place while a request uses it, which ends with the one that it began with', async () => {
  await using session = new Session();
  using at = await place(session);
  await using model = await session.load(at.model);
  await using serving = model.serve();
  const dir = join(at.dir.path, 'swapped');
  const request = { promptIds: promptOf(3), adapter: 'swapped', maxNewTokens: 60, eosIds: [] };
  cpSync(at.adapters.lora!, dir, { recursive: true });
  await serving.addAdapter('swapped', dir);
  await assert.rejects(serving.addAdapter('swapped', dir), /already/);
  const before = await serving.submit(request);
  const during = serving.submit(request);
  let replaced: Promise<void> | undefined;
  for await (const _ of during) {
    if (replaced) continue;
    cpSync(at.adapters.ia3!, dir, { recursive: true, force: true });
    replaced = serving.addAdapter('swapped', dir, { replace: true });
  }
  await replaced;
  assert.equal((await during).text, before.text);
  const after = await serving.submit(request);
  assert.notEqual(after.text, before.text);
  await serving.removeAdapter('swapped');
  await assert.rejects(serving.submit(request), /no adapter named/);
  // Other jobs take turns with the passes.
  const busy = serving.submit({ ...request, adapter: undefined, maxNewTokens: 200 });
  const logits = await model.logits([[1, 2, 3]], { adapter: at.adapters.lora });
  assert.equal(logits.length, 1);
  assert.equal((await busy).newTokens, 200);
  const last = serving.submit({ ...request, adapter: undefined, maxNewTokens: 200 });
  await serving.close({ drainMs: 60_000 });
  assert.equal((await last).reason, 'length');
  await assert.rejects(serving.submit(request), /serving/);
});
