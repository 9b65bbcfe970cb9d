import assert from 'node:assert/strict';
import test from 'node:test';
import { randomStream } from '../data/index.ts';
import { checkSampling, type SamplingOptions, sample } from './sampling.ts';

/** Probability of each token by the definitions of transformers' processors, without optimisation. */
function expected(logits: readonly number[], seen: ReadonlySet<number>, options: SamplingOptions): number[] {
  const { temperature = 1, topK = Infinity, topP = 1, minP = 0, repetitionPenalty = 1 } = options;
  let scores = logits.map((x, id) => (seen.has(id) ? (x < 0 ? x * repetitionPenalty : x / repetitionPenalty) : x));
  const softmax = (xs: readonly number[]) => {
    const max = Math.max(...xs);
    const e = xs.map((x) => Math.exp(x - max));
    const sum = e.reduce((a, b) => a + b);
    return e.map((x) => x / sum);
  };
  const keep = (isKept: (p: number, id: number) => boolean) => {
    const p = softmax(scores);
    scores = scores.map((x, id) => (isKept(p[id]!, id) ? x : -Infinity));
  };
  scores = scores.map((x) => x / temperature);
  const kth = [...scores].sort((a, b) => b - a)[Math.min(topK, scores.length) - 1]!;
  keep((_, id) => scores[id]! >= kth);
  const probabilities = softmax(scores);
  // A token is removed if it and all less likely ones together have at most 1 − topP.
  if (topP < 1) keep((p) => probabilities.filter((q) => q <= p).reduce((a, b) => a + b) > 1 - topP);
  const maxProbability = Math.max(...softmax(scores));
  keep((p) => p >= minP * maxProbability);
  return softmax(scores);
}

const cases: SamplingOptions[] = [
  { temperature: 1 },
  { temperature: 0.7 },
  { temperature: 2.5, topK: 1 },
  { temperature: 1, topK: 5 },
  { temperature: 1, topK: 120 },
  { temperature: 1, topK: 1000 },
  { temperature: 1, topP: 0.9 },
  { temperature: 3, topP: 0.97 },
  { temperature: 0.3, topP: 0.01 },
  { temperature: 1, minP: 0.1 },
  { temperature: 1, minP: 1 },
  { temperature: 1.3, topK: 90, topP: 0.8, minP: 0.02, repetitionPenalty: 1.3 },
  { temperature: 0.9, repetitionPenalty: 0.5 },
];

for (const [i, options] of cases.entries()) {
  test(`draws have the probabilities that transformers' definitions give: ${JSON.stringify(options)}`, () => {
    const random = randomStream(7, i);
    const vocabulary = 150;
    const logits = Array.from({ length: vocabulary }, () => Math.fround(9 * (random() - 0.5)));
    const seen = new Set([3, 50, 51, 149]);
    const want = expected(logits, seen, options);
    const counts = new Float64Array(vocabulary);
    const draws = 5_000;
    // The points are evenly spaced instead of random, so that each count is exact within rounding.
    for (let d = 0; d < draws; d++) {
      counts[sample(Float32Array.from(logits), { seen, counts: new Map() }, options, () => (d + 0.5) / draws)]!++;
    }
    for (let id = 0; id < vocabulary; id++) {
      const error = Math.abs(counts[id]! - draws * want[id]!);
      assert.ok(error <= 1.01, `token ${id} was drawn ${counts[id]} times, not ${draws * want[id]!}`);
    }
  });
}

test('temperature 0 takes the likeliest token, the first of equal ones, after the repetition penalty', () => {
  const pick = (logits: number[], seen: number[] = [], repetitionPenalty = 1) =>
    sample(
      Float32Array.from(logits),
      { seen: new Set(seen), counts: new Map() },
      { temperature: 0, repetitionPenalty },
      assert.fail,
    );
  assert.equal(pick([1, 3, 2, 3]), 1);
  assert.equal(pick([1, 3, 2], [1], 2), 2);
  assert.equal(pick([-1, -2, -3], [0], 4), 1);
  assert.equal(pick([-Infinity, -5]), 1);
  assert.equal(pick([-Infinity, -Infinity]), 0);
});

test('top-k of equal logits keeps exactly k, and a tiny temperature still draws the likeliest', () => {
  const flat = new Float32Array(100).fill(2);
  const drawn = new Set(
    Array.from({ length: 50 }, (_, i) =>
      sample(flat, { seen: new Set(), counts: new Map() }, { temperature: 1, topK: 7 }, () => i / 50),
    ),
  );
  assert.deepEqual([...drawn].sort(), [0, 1, 2, 3, 4, 5, 6]);
  const steep = Float32Array.of(1, 2, -Infinity);
  for (const point of [0, 0.5, 1 - 2 ** -32])
    assert.equal(
      sample(steep, { seen: new Set(), counts: new Map() }, { temperature: 1e-6 }, () => point),
      1,
    );
});

test('a logit that is NaN is refused at any position', () => {
  for (const logits of [
    [NaN, 1],
    [1, NaN],
    [NaN, NaN],
  ]) {
    assert.throws(() => sample(Float32Array.from(logits), { seen: new Set(), counts: new Map() }, {}, () => 0), {
      kind: 'numeric',
    });
  }
});

test('settings outside their range are refused by name', () => {
  const wrong: [string, SamplingOptions][] = [
    ['temperature', { temperature: -1 }],
    ['temperature', { temperature: NaN }],
    ['top-k', { topK: 0 }],
    ['top-k', { topK: 1.5 }],
    ['top-p', { topP: 0 }],
    ['top-p', { topP: 1.1 }],
    ['min-p', { minP: -0.1 }],
    ['repetition-penalty', { repetitionPenalty: 0 }],
  ];
  for (const [place, options] of wrong) assert.throws(() => checkSampling(options), { kind: 'usage', place });
});
