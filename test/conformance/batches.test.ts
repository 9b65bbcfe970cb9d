/**
 * Rows of a batch against each row alone, over families and packed bases: greedy tokens equal, log-probabilities within 1e-5, seeded
 * draws the same, whatever joins and leaves, in whatever chunks, with blocks that others left, and after pre-emptions.
 */
import assert from 'node:assert/strict';
import test, { before } from 'node:test';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import {
  type AdapterOfRequest,
  Batcher,
  bankKey,
  checkRequest,
  type GenerationEnd,
  type GenerationRequest,
  generate,
} from '../../src/generate/index.ts';
import { loadModel } from '../../src/models/index.ts';
import type { Model, Port, Prefix, Prompt } from '../../src/nn/index.ts';
import { detachFromScopes, Generator, ops } from '../../src/tensor/index.ts';
import { golden } from '../support.ts';
import { bases } from './bases.ts';

before(() => startEngine());

const causal: readonly { readonly name: string; load(): Model }[] = [
  ...bases,
  ...['gpt2', 'gpt-neox', 'gpt-neox-serial'].map((name) => ({ name, load: () => loadModel(golden('families', name)) })),
  ...['llama-dynamic', 'llama-longrope', 'qwen3-yarn'].map((name) => ({
    name,
    load: () => loadModel(golden('models', name)),
  })),
];

interface Asked {
  readonly request: GenerationRequest;
  readonly adapter: AdapterOfRequest;
  /** The step before which it is submitted. */
  readonly at: number;
}

/** Answers all requests in one batch. */
function answers(
  model: Model,
  asked: readonly Asked[],
  limits: Partial<Record<'maxBatchTokens' | 'maxRunning' | 'blocks', number>> = {},
) {
  using batcher = new Batcher({
    limits: { maxBatchTokens: 64, maxRunning: 16, maxQueue: asked.length, blocks: 200, ...limits },
    shape: model,
    activate: () => model,
  });
  const ends = new Array<GenerationEnd>(asked.length);
  for (let step = 0; step === 0 || !batcher.isIdle || asked.some(({ at }) => at >= step); step++) {
    asked.forEach(({ request, adapter, at }, i) => {
      if (at !== step) return;
      batcher.submit(request, adapter, checkRequest(model, request, adapter.virtual), {
        delta() {},
        end(end) {
          ends[i] = end;
        },
        fail(error) {
          throw error;
        },
      });
    });
    batcher.step();
  }
  return { ends, counts: batcher.counts };
}

const base: AdapterOfRequest = { number: 0, batchKey: bankKey, contentKey: 'base', virtual: 0 };

/** Tokens of a row that is answered: within those where rotary positions stay as they are. */
const roomOf = ({ contextLength }: Model, name: string) =>
  name === 'llama-longrope' ? 16 : Math.min(90, contextLength);

/** Prompts of which some begin alike. */
function requests(model: Model, name: string, adapterOf: (i: number) => AdapterOfRequest): Asked[] {
  const id = (i: number) => ((i * 7919) % 1009) % model.vocabSize;
  const room = roomOf(model, name);
  return Array.from({ length: 14 }, (_, i) => {
    const length = Math.min([3, 41, 27, 40, 29, 33, 64][i % 7]!, Math.floor(room / 2));
    const start = i % 2 === 0 ? 0 : 1000 * i;
    const promptIds = Array.from({ length }, (_, t) => id(start + t * t + 3 * t));
    const sampling = i % 4 === 3 ? { temperature: 1.3, topP: 0.9, seed: i } : {};
    const request = { promptIds, maxNewTokens: Math.min(10 + (i % 3), room - length), logprobs: 3, ...sampling };
    return { request, adapter: adapterOf(i), at: [0, 0, 0, 1, 2, 2, 5, 9][i % 8]! };
  });
}

/** Asserts that each answer is the one that its request gets alone. @returns how many tokens were compared, and the largest error */
function assertAsAlone(
  model: Model,
  asked: readonly Asked[],
  ends: readonly GenerationEnd[],
  alone: readonly GenerationEnd[],
) {
  let [tokens, worst] = [0, 0];
  ends.forEach((end, i) => {
    assert.deepEqual(end.ids, alone[i]!.ids, `request ${i} of ${model.family}: ${JSON.stringify(asked[i]!.adapter)}`);
    end.logprobs!.forEach(({ logprob, top }, t) => {
      const want = alone[i]!.logprobs![t]!;
      const error = Math.max(
        ...[{ logprob }, ...top].map((one, j) => Math.abs(one.logprob - [want, ...want.top][j]!.logprob)),
      );
      worst = Math.max(worst, error / Math.max(1, Math.abs(want.logprob)));
      tokens++;
    });
  });
  assert.ok(worst < 1e-5, `log-probabilities differ by ${worst}`);
  return { tokens, worst };
}

const mixes = [
  ['whole prompts', {}],
  ['chunks of 5 tokens', { maxBatchTokens: 5, maxRunning: 4 }],
  ['few blocks, so rows are computed again', { blocks: 7, maxRunning: 8 }],
  ['chunks and few blocks', { maxBatchTokens: 9, maxRunning: 9, blocks: 5 }],
] as const;

for (const { name, load } of causal) {
  test(`${name}: rows of a batch are as each alone`, (t) => {
    using model = load();
    const asked = requests(model, name, () => base);
    const alone = asked.map((one) => answers(model, [{ ...one, at: 0 }]).ends[0]!);
    asked.forEach(({ request }, i) => {
      if (request.temperature) return;
      const one = [...generate(model, request.promptIds, { maxNewTokens: request.maxNewTokens })];
      assert.deepEqual(alone[i]!.ids, one);
    });
    const handles = currentEngine().native.memory().handles;
    let [tokens, worst, found, preemptions] = [0, 0, 0, 0];
    for (const [, limits] of mixes) {
      const { ends, counts } = answers(model, asked, limits);
      const compared = assertAsAlone(model, asked, ends, alone);
      tokens += compared.tokens;
      worst = Math.max(worst, compared.worst);
      found += counts.cache.found;
      preemptions += counts.preemptions;
      assert.deepEqual([counts.waiting, counts.running, counts.blocks.used], [0, 0, 0]);
    }
    t.diagnostic(`${tokens} tokens, ${found} found, ${preemptions} pre-emptions, largest error ${worst}`);
    assert.ok(tokens > 300, `${tokens} tokens`);
    if (roomOf(model, name) >= 64) assert.ok(preemptions > 0, 'no row was pre-empted');
    if (model.contextLength > 80) assert.ok(found > 0, 'no block was found');
    assert.equal(currentEngine().native.memory().handles, handles);
  });
}

for (const { name, load } of causal.filter((one) => !/dynamic|longrope/.test(one.name))) {
  test(`${name}: rows with prompts and prefixes of different lengths, and without, share a batch`, (t) => {
    using model = load();
    using generator = new Generator(4);
    const random = (...shape: number[]) => detachFromScopes(ops.randn(shape, { generator }));
    const { layers, kvHeads, headDim } = model;
    const tensors: ReturnType<typeof random>[] = [];
    const made = (...shape: number[]) => {
      tensors.push(random(...shape));
      return tensors.at(-1)!;
    };
    const promptOf = new Map<number, Prompt>();
    const prefixOf = new Map<number, Prefix>();
    for (const [adapter, length] of [
      [1, 3],
      [3, 11],
      [4, 5],
    ] as const) {
      const vectors = made(length, model.width);
      promptOf.set(adapter, { length, vectors: () => vectors });
    }
    for (const [adapter, length] of [
      [2, 4],
      [4, 34],
    ] as const) {
      const values = Array.from({ length: layers }, () => ({
        k: made(length, kvHeads, headDim),
        v: made(length, kvHeads, headDim),
      }));
      prefixOf.set(adapter, { length, open: () => (layer) => values[layer]! });
    }
    const only = (adapter: number): Port => {
      const [prompt, prefix] = [promptOf.get(adapter), prefixOf.get(adapter)];
      return { enabled: true, ...(prompt && { prompt }), ...(prefix && { prefix }) };
    };
    const virtual = (adapter: number) => (promptOf.get(adapter)?.length ?? 0) + (prefixOf.get(adapter)?.length ?? 0);
    const asked = requests(model, name, (i) => {
      const number = i % 5;
      return { number, batchKey: bankKey, contentKey: `${number}`, virtual: virtual(number) };
    }).filter(({ request, adapter }) => adapter.virtual + request.promptIds.length + 13 < model.contextLength);
    const alone = asked.map(({ request, adapter }) => {
      const remove = model.ports.add(only(adapter.number));
      try {
        return answers(model, [{ request, adapter: { ...adapter, number: 0, batchKey: 'alone' }, at: 0 }]).ends[0]!;
      } finally {
        remove();
      }
    });
    // The adapters do something.
    const plain = answers(model, [{ ...asked[1]!, adapter: base, at: 0 }]).ends[0]!;
    assert.notDeepEqual(plain.logprobs, alone[1]!.logprobs);
    const remove = model.ports.add({
      enabled: true,
      promptOf: (adapter) => promptOf.get(adapter),
      prefixOf: (adapter) => prefixOf.get(adapter),
    });
    let [tokens, worst] = [0, 0];
    for (const [, limits] of mixes) {
      const { ends } = answers(model, asked, limits);
      const compared = assertAsAlone(model, asked, ends, alone);
      tokens += compared.tokens;
      worst = Math.max(worst, compared.worst);
    }
    remove();
    for (const tensor of tensors) tensor.dispose();
    t.diagnostic(`${tokens} tokens, largest error ${worst}`);
    assert.ok(tokens > 250, `${tokens} tokens`);
  });
}

test('a row for which a pass fails ends alone, and the others go on', () => {
  using model = loadModel(golden('models', 'llama-longrope'));
  const [short, long] = [
    { promptIds: [5, 6, 7], maxNewTokens: 12 },
    { promptIds: Array.from({ length: 14 }, (_, i) => i), maxNewTokens: 12 },
  ];
  const alone = [...generate(model, short.promptIds, short)];
  using batcher = new Batcher({
    limits: { maxBatchTokens: 64, maxRunning: 4, maxQueue: 4, blocks: 20 },
    shape: model,
    activate: () => model,
  });
  let [ids, error]: [readonly number[], unknown] = [[], undefined];
  for (const request of [short, long]) {
    batcher.submit(request, base, checkRequest(model, request, 0), {
      delta() {},
      end(end) {
        assert.equal(request, short);
        ids = end.ids;
      },
      fail(failure) {
        assert.equal(request, long);
        error = failure;
      },
    });
  }
  while (!batcher.isIdle) batcher.step();
  assert.deepEqual(ids, alone);
  assert.match(String(error), /rotary positions change/);
  assert.equal(batcher.counts.blocks.used, 0);
});
