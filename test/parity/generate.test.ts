/** Generation against full forward passes of the tiny models, and against transformers on the real one. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import test, { before } from 'node:test';
import { tokenizerOf } from '../../src/data/index.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import {
  type GenerateOptions,
  type GenerateSummary,
  generate,
  generateText,
  scoreChoices,
} from '../../src/generate/index.ts';
import { loadModel } from '../../src/models/index.ts';
import { type Model, outputOf, packTokens } from '../../src/nn/index.ts';
import { noGrad, ops, scope } from '../../src/tensor/index.ts';
import { golden, numbers } from '../support.ts';

before(() => startEngine());

function collect(
  model: Model,
  prompt: ArrayLike<number>,
  options: GenerateOptions,
): { ids: number[]; summary: GenerateSummary } {
  const steps = generate(model, prompt, options);
  const ids: number[] = [];
  for (let step = steps.next(); ; step = steps.next()) {
    if (step.done) return { ids, summary: step.value };
    ids.push(step.value);
  }
}

/** Logits [N][V] of a row, without a cache. */
const full = (model: Model, ids: readonly number[]): Float32Array[] =>
  noGrad(() => {
    using _ = scope();
    const all = numbers(outputOf(model, packTokens([ids])));
    return ids.map((_, i) => all.subarray(i * model.vocabSize, (i + 1) * model.vocabSize));
  });

const argmax = (row: Float32Array) => row.indexOf(row.reduce((a, b) => Math.max(a, b)));
const promptOf = (model: Model, length: number) =>
  Array.from({ length }, (_, i) => (i * i * 7 + 3 * i + 1) % model.vocabSize);
const handles = () => currentEngine().native.memory().handles;
// Rows of these change their rotary angles where they become long (models.test.ts).
const models = readdirSync(golden('models')).filter((name) => !/longrope|dynamic/.test(name));

test('the tiny models are there', () => assert.equal(models.length, 7));

for (const name of models) {
  test(`${name}: tokens with a cache are the argmax of a full pass at every step`, () => {
    using model = loadModel(golden('models', name));
    for (const [length, prefillTokens] of [
      [1, 512],
      [37, 512],
      [37, 10],
      [40, 40],
      [40, 1],
    ] as const) {
      const prompt = promptOf(model, length);
      const { ids, summary } = collect(model, prompt, { maxNewTokens: 24, prefillTokens });
      assert.equal(ids.length, 24);
      assert.deepEqual([summary.reason, summary.promptTokens, summary.newTokens], ['length', length, 24]);
      const rows = full(model, [...prompt, ...ids]);
      ids.forEach((id, i) => {
        const row = rows[length - 1 + i]!;
        // Where two logits are nearer than rounding, either is right.
        const lead = row[argmax(row)]! - row[id]!;
        assert.ok(lead <= 1e-5 * Math.abs(row[id]!), `token ${i} is ${id}, ${lead} below the likeliest`);
      });
    }
  });

  test(`${name}: choices are scored as the full pass scores them, and leave no handle`, () => {
    using model = loadModel(golden('models', name));
    const prompts = [promptOf(model, 1), promptOf(model, 33), promptOf(model, 20)];
    // As many for each prompt, but not the same: the second prompt's begin with another token.
    const choices = [[5], [6], [5, 9, 2], [5, 9, 3], [8, 1]];
    const each = prompts.map((_, p) => (p === 1 ? choices.map(([first, ...rest]) => [first! + 1, ...rest]) : choices));
    scoreChoices(model, prompts, each);
    const before = handles();
    const got = scoreChoices(model, prompts, each);
    assert.equal(handles(), before);
    prompts.forEach((prompt, p) => {
      each[p]!.forEach((choice, c) => {
        const rows = full(model, [...prompt, ...choice]);
        const want = choice.reduce((sum, id, i) => {
          const row = rows[prompt.length - 1 + i]!;
          return sum + row[id]! - Math.log(row.reduce((total, x) => total + Math.exp(x), 0));
        }, 0);
        assert.ok(Math.abs(got[p]![c]! - want) <= 2e-5 * Math.abs(want), `${got[p]![c]} against ${want}`);
      });
    });
  });
}

test('no handle is left after an answer, an answer given up, and an error', () => {
  using model = loadModel(golden('models', 'llama2'));
  const prompt = promptOf(model, 9);
  collect(model, prompt, { maxNewTokens: 4 });
  const before = handles();
  collect(model, prompt, { maxNewTokens: 4 });
  for (const _ of generate(model, prompt, { maxNewTokens: 4 })) break;
  assert.throws(() => {
    for (const _ of generate(model, prompt, { maxNewTokens: 4 })) throw new Error('given up');
  }, /given up/);
  assert.throws(() => collect(model, [], { maxNewTokens: 4 }));
  assert.equal(handles(), before);
});

test('the consumer may hold scopes and record gradients between two tokens', () => {
  using model = loadModel(golden('models', 'llama2'));
  const prompt = promptOf(model, 9);
  const want = collect(model, prompt, { maxNewTokens: 5 }).ids;
  const got: number[] = [];
  const steps = generate(model, prompt, { maxNewTokens: 5 });
  for (;;) {
    using _ = scope();
    const step = steps.next();
    if (step.done) break;
    got.push(step.value);
    const x = ops.ones([2]);
    x.requiresGrad = true;
    ops.sum(ops.mul(x, x)).backward();
    assert.deepEqual([...numbers(x.grad!)], [2, 2]);
  }
  assert.deepEqual(got, want);
});

test('an answer ends at eos, at the number asked for, and at the end of the context', () => {
  using model = loadModel(golden('models', 'qwen3'));
  const prompt = promptOf(model, 12);
  const free = collect(model, prompt, { maxNewTokens: 8 }).ids;
  const eos = free.find((id, i) => i >= 2 && free.indexOf(id) === i)!;
  assert.ok(eos !== undefined);
  const { ids, summary } = collect(model, prompt, { maxNewTokens: 8, eosIds: [eos] });
  assert.deepEqual(ids, free.slice(0, free.indexOf(eos)));
  assert.equal(summary.reason, 'eos');
  const first = collect(model, prompt, { maxNewTokens: 8, eosIds: [free[0]!] });
  assert.deepEqual([first.ids, first.summary.reason, first.summary.newTokens], [[], 'eos', 0]);

  const long = promptOf(model, model.contextLength - 3);
  const last = collect(model, long, { maxNewTokens: 100 });
  assert.deepEqual([last.ids.length, last.summary.reason], [3, 'length']);
  const mistakes: [string, ArrayLike<number>, Partial<GenerateOptions>][] = [
    ['prompt', promptOf(model, model.contextLength), {}],
    ['prompt', [], {}],
    ['prompt', [model.vocabSize], {}],
    ['prompt', [-1], {}],
    ['max-new-tokens', prompt, { maxNewTokens: 0 }],
    ['max-new-tokens', prompt, { maxNewTokens: NaN }],
    ['temperature', prompt, { temperature: -1 }],
    ['seed', prompt, { seed: 0.5 }],
  ];
  for (const [place, ids, options] of mistakes) {
    assert.throws(() => collect(model, ids, { maxNewTokens: 4, ...options }), { kind: 'usage', place });
  }
  assert.throws(() => scoreChoices(model, [[]], [[[1]]]), { kind: 'usage', place: 'prompt 0' });
  assert.throws(() => scoreChoices(model, [prompt], [[[]]]), { kind: 'usage', place: 'choice 0' });
});

test('the seed decides what is drawn', () => {
  using model = loadModel(golden('models', 'llama3'));
  const drawn = (seed: number) =>
    collect(model, promptOf(model, 5), { maxNewTokens: 20, temperature: 1.5, topK: 50, seed }).ids.join();
  assert.equal(drawn(1), drawn(1));
  assert.equal(new Set([0, 1, 2, 2 ** 40, -1].map(drawn)).size, 5);
});

interface Case {
  readonly ids: number[];
  readonly new_ids: number[];
  readonly new_text: string;
  readonly text: string;
  readonly finished: boolean;
}
const real = JSON.parse(readFileSync(golden('real', 'generate.json'), 'utf8')) as {
  max_new_tokens: number;
  stop: number;
  cases: Case[];
};
const path = process.env.GRAFT_TEST_MODEL;
const skip =
  !path && 'GRAFT_TEST_MODEL names no SmolLM2-135M-Instruct GGUF file (the one of tools/golden/make_real.py)';

for (const quantize of ['none', 'keep'] as const) {
  test(`the real model, quantize ${quantize}: greedy tokens and text are those of transformers`, { skip }, () => {
    using model = loadModel(path!, { quantize });
    const tokenizer = tokenizerOf(path!);
    assert.deepEqual(tokenizer.eosIds, [real.stop]);
    for (const { text, ids, new_ids, new_text, finished } of real.cases) {
      assert.deepEqual([...tokenizer.encode(text, { addSpecialTokens: false })], ids);
      const got = generateText(model, tokenizer, ids, { maxNewTokens: real.max_new_tokens });
      // The goldens count the token that ended the answer.
      assert.deepEqual(got.ids, finished ? new_ids.slice(0, -1) : new_ids);
      assert.equal(got.text, new_text);
      assert.equal(got.reason, finished ? 'eos' : 'length');
    }
    assert.equal(real.cases.length, 5);
  });
}
