/** Serving in this thread: nothing is left when requests, callers, adapters and the model come and go at random. */
import assert from 'node:assert/strict';
import { cpSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { tinyModel } from '../../test/samples/tiny.ts';
import { temporary } from '../../test/support.ts';
import { saveAdapter } from '../adapters/index.ts';
import { GraftError } from '../base/index.ts';
import { randomStream } from '../data/index.ts';
import { currentEngine, startEngine } from '../engine/index.ts';
import { type GenerationEnd, type GenerationRequest, XGrammar } from '../generate/index.ts';
import { attach } from '../methods/index.ts';
import { loadModel } from '../models/index.ts';
import { noGrad, ops, scope } from '../tensor/index.ts';
import { ResidentModel } from './resident.ts';
import { ServedModel } from './served-model.ts';
import { inTurn } from './turns.ts';

before(() => startEngine());

const nobody = { emit() {}, stopRequested: () => false, throwIfStopped() {} };

/** Writes adapters of several kinds with random values. */
function writeAdapters(base: string, dir: string): Map<string, string> {
  using _ = scope();
  using model = loadModel(base);
  const dirs = new Map<string, string>();
  const kinds = { lora: {}, lora2: { r: 3 }, dora: { use_dora: true }, prefix: { num_virtual_tokens: 4 }, ia3: {} };
  for (const [name, fields] of Object.entries(kinds)) {
    using adapter = attach(model, [
      { type: name.startsWith('lora') || name === 'dora' ? 'lora' : name, ...fields } as { type: 'lora' },
    ]);
    for (const p of adapter.parameters.values())
      noGrad(() => ops.add_(p, ops.mulScalar(ops.cos(ops.mulScalar(p, 1e4)), 0.1)));
    const to = join(dir, name);
    saveAdapter(model, adapter, to, { base });
    dirs.set(name, to);
    adapter.detach();
  }
  return dirs;
}

test('after random requests, cancels, loads, evictions, and the model loaded again, no handle of the engine is left', async (t) => {
  using dir = temporary();
  const base = tinyModel(join(dir.path, 'model'));
  const dirs = writeAdapters(base, dir.path);
  const random = randomStream(11);
  const int = (n: number) => Math.floor(random() * n);
  const handles = () => currentEngine().native.memory().handles;
  const before = handles();
  const reasons = new Map<string, number>();
  const settled: Promise<unknown>[] = [];
  /** Greedy answers, which the same request alone has to repeat. */
  const answered: { readonly request: GenerationRequest; readonly end: GenerationEnd }[] = [];
  {
    using resident = new ResidentModel(base, 'keep');
    const served = new ServedModel(resident, {
      maxRunning: 6,
      maxQueue: 12,
      maxBatchTokens: 20,
      adapterMemory: 4000,
      kvMemory: 3e5,
    });
    for (const [name, adapterDir] of dirs) await served.adapters.add(name, adapterDir, { load: int(2) === 0 });
    const count = (reason: string) => reasons.set(reason, (reasons.get(reason) ?? 0) + 1);
    for (let i = 0; i < 150; i++) {
      const name = [undefined, ...dirs.keys()][int(1 + dirs.size)];
      let asked = 0;
      const leavesAt = int(4) === 0 ? int(20) : Infinity;
      const request: GenerationRequest = {
        promptIds: Array.from({ length: 1 + int(40) }, () => 1 + int(80)),
        maxNewTokens: 1 + int(25),
        ...(int(5) === 0
          ? {
              mixture: [
                { name: 'lora', weight: 0.5 },
                { name: 'lora2', weight: -1 },
              ],
            }
          : { adapter: name }),
        ...(int(3) === 0 && { temperature: 1.5, seed: i }),
        ...(int(6) === 0 && { deadlineMs: int(30) }),
      };
      const context = { emit() {}, stopRequested: () => asked++ > leavesAt, throwIfStopped() {} };
      const answer = served.submit(request, context).then(
        (end: GenerationEnd) => {
          count(end.reason);
          if (!request.temperature) answered.push({ request, end });
        },
        (error: GraftError) => {
          assert.ok(error instanceof GraftError, String(error));
          count(String(error.data.reason ?? error.message));
        },
      );
      settled.push(answer);
      if (int(4) === 0) await answer;
      if (int(12) === 0) {
        const [other, otherDir] = [...dirs][int(dirs.size)]!;
        await served.adapters.add(other, otherDir, { replace: true, load: int(2) === 0 });
      }
      if (int(40) === 0) await inTurn(() => resident.release());
    }
    await Promise.all(settled);
    const { waiting, running, blocks, adapters } = served.stats();
    assert.deepEqual([waiting, running, blocks.used], [0, 0, 0]);
    assert.ok(adapters.registered.length === dirs.size && adapters.resident.length < dirs.size);
    for (const { request, end } of answered) {
      const alone = await served.submit({ ...request, deadlineMs: undefined }, nobody);
      assert.deepEqual(end.ids, alone.ids.slice(0, end.ids.length), JSON.stringify(request));
    }
    t.diagnostic(`${answered.length} answers repeated`);
    await served.close();
  }
  t.diagnostic(JSON.stringify(Object.fromEntries(reasons)));
  assert.ok((reasons.get('length') ?? 0) > 40 && (reasons.get('interrupted') ?? 0) > 3, 'answers of each kind');
  assert.ok(
    [...reasons.keys()].every((reason) => ['eos', 'length', 'interrupted', 'deadline', 'queue-full'].includes(reason)),
  );
  assert.equal(handles(), before);
});

test('an adapter whose files change while the model is freed: rows that run with it fail, later ones have the new content', async () => {
  using dir = temporary();
  const base = tinyModel(join(dir.path, 'model'));
  const dirs = writeAdapters(base, dir.path);
  const [one, other] = [dirs.get('lora')!, dirs.get('lora2')!];
  using resident = new ResidentModel(base, 'keep');
  const served = new ServedModel(resident, { maxRunning: 4 });
  await served.adapters.add('one', one);
  await served.adapters.add('other', other);
  const ask = (request: Partial<GenerationRequest>, context = nobody) =>
    served.submit({ promptIds: [5, 6, 7, 8], maxNewTokens: 12, eosIds: [], ...request }, context);
  const fresh = (await ask({ adapter: 'other' })).ids;
  assert.notDeepEqual((await ask({ adapter: 'one' })).ids, fresh);
  let pieces = 0;
  const change = () => {
    if (++pieces !== 3) return;
    void inTurn(() => {
      resident.release();
      cpSync(other, one, { recursive: true });
    });
  };
  const mixture = [
    { name: 'one', weight: 1 },
    { name: 'other', weight: 1 },
  ];
  const long = { maxNewTokens: 60 };
  const running = [
    ask({ adapter: 'one', ...long }, { ...nobody, emit: change }),
    ask({ mixture, ...long }),
    ask({ adapter: 'other', ...long }),
  ];
  const ends = await Promise.allSettled(running);
  assert.deepEqual(
    ends.map(({ status }) => status),
    ['rejected', 'rejected', 'fulfilled'],
  );
  for (const end of ends.slice(0, 2))
    assert.match(String((end as PromiseRejectedResult).reason), /the adapter is not in memory any more/);
  assert.deepEqual((await ask({ adapter: 'one' })).ids, fresh);
  assert.deepEqual((await ask({ adapter: 'other' })).ids, fresh);
  await served.close();
});

test('an adapter is loaded in a few turns between the passes of others, however many layers it has', async () => {
  using dir = temporary();
  const base = tinyModel(join(dir.path, 'model'));
  const dirs = writeAdapters(base, dir.path);
  using resident = new ResidentModel(base, 'keep');
  const served = new ServedModel(resident, {});
  const { contextLength } = resident.info;
  let begun = () => {};
  const first = new Promise<void>((resolve) => (begun = resolve));
  let left = false;
  const context = { ...nobody, emit: begun, stopRequested: () => left };
  const request = { promptIds: [5, 6, 7], maxNewTokens: contextLength - 3, eosIds: [] };
  // One answer after the other, since a fast machine ends one before all are loaded.
  const answering = (async () => {
    while (!left) await served.submit(request, context);
  })();
  await first;
  let loaded = 0;
  for (const [name, adapterDir] of dirs) {
    const { steps } = served.stats();
    await served.adapters.add(name, adapterDir);
    const passes = served.stats().steps - steps;
    assert.ok(passes <= 12, `${name}: ${passes} passes`);
    loaded++;
  }
  left = true;
  await answering;
  assert.ok(served.stats().steps > loaded);
  assert.equal(loaded, 5);
  await served.close();
});

test('while the grammar of a large schema is compiled, another answer goes on', async (t) => {
  using dir = temporary();
  using resident = new ResidentModel(tinyModel(join(dir.path, 'model')), 'keep');
  const served = new ServedModel(resident, { maxRunning: 4, kvMemory: 2 ** 22 });
  const fields = Array.from({ length: 6 }, (_, i) => [`field_${i}`, { type: 'string', maxLength: 60 + i }]);
  const schema = { type: 'object', properties: Object.fromEntries(fields), required: fields.map(([name]) => name) };
  const ebnf = await new XGrammar().fromJsonSchema(JSON.stringify(schema));
  const request = { promptIds: [5, 6, 7], maxNewTokens: 100, eosIds: [] };
  const times: number[] = [];
  let stop = false;
  const stream = { ...nobody, emit: () => void times.push(performance.now()), stopRequested: () => stop };
  const streaming = (async () => {
    while (!stop) await served.submit(request, stream);
  })();
  const start = performance.now();
  const first = await served.submit({ ...request, maxNewTokens: 1, grammar: ebnf }, nobody);
  const end = performance.now();
  stop = true;
  await streaming;
  await served.close();
  assert.equal(first.newTokens, 1);
  const during = times.filter((time) => time >= start && time <= end);
  const longest = Math.max(...during.map((time, i) => time - (during[i - 1] ?? start)));
  t.diagnostic(
    `compiled in ${(end - start).toFixed(0)} ms; another answer paused for ${longest.toFixed(0)} ms at most`,
  );
  assert.ok(during.length > 20, `${during.length} pieces`);
  assert.ok(longest < (end - start) / 3, `it paused for ${longest} of ${end - start} ms`);
});
