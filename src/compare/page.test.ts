import assert from 'node:assert/strict';
import test from 'node:test';
import { type Outcome, page, type Results, table } from './index.ts';

const outcome = (name: string, metric: string, value: number, trainable: number): Outcome => ({
  name,
  method: name,
  lr: 1e-3,
  metric: { name: metric, value, low: value - 0.05, high: value + 0.05, count: 40, of: 'rows' },
  trainable,
  parameters: 1e6,
  losses: [2, 1, 0],
  tokensPerSecond: 100,
  peakMb: 500,
  size: 4000,
  seconds: 9,
});

const results = (outcomes: readonly Outcome[]): Results => ({
  title: 'rows',
  date: '2026-01-02',
  before: undefined,
  failed: [],
  outcomes,
  loss: 1,
});

/** Places of the dots of the second picture that the dashed line goes through, from the smallest. */
const front = (html: string) => {
  const [, picture] = html.match(/<svg [^]*?<\/svg>/g)!;
  const [, line] = /<polyline class="mark"[^>]* points="([^"]*)"/.exec(picture!)!;
  const dots = [...picture!.matchAll(/cx="([^"]*)" cy="([^"]*)" r="5"><title>([\w-]+):/g)];
  const names = new Map(dots.map(([, cx, cy, name]) => [`${cx},${cy}`, name]));
  assert.equal(names.size, 4);
  return line!
    .split(' ')
    .map((place) => names.get(place))
    .reverse();
};

test('shares: the most is the best, and the line goes along what nothing smaller reaches', () => {
  const given = [
    outcome('full', 'accuracy', 0.9, 1e6),
    outcome('lora', 'accuracy', 0.88, 5e4),
    outcome('prefix', 'accuracy', 0.8, 6e4),
    outcome('ia3', 'accuracy', 0.7, 1e3),
  ];
  const { head, rows } = table(results(given));
  assert.equal(head[1], 'accuracy %');
  assert.deepEqual(
    rows.map(([name, value]) => [name, value]),
    [
      ['full', '90.0'],
      ['lora', '88.0'],
      ['prefix', '80.0'],
      ['ia3', '70.0'],
    ],
  );
  const html = page(results(given));
  assert.deepEqual(front(html), ['ia3', 'lora', 'full']);
  assert.match(html, /The best: full, 90\.0 %.*The smallest whose interval reaches it: lora, 88\.0 % with 50,000 /);
});

test('errors: the least is the best, and they are no shares', () => {
  const given = [
    outcome('ia3', 'mse', 0.9, 1e3),
    outcome('lora', 'mse', 0.2, 5e4),
    outcome('prefix', 'mse', 0.3, 6e4),
    outcome('full', 'mse', 0.1, 1e6),
  ];
  const { head, rows } = table(results(given));
  assert.equal(head[1], 'mse');
  assert.deepEqual(
    rows.map(([name, value]) => `${name} ${value}`),
    ['full 0.1000', 'lora 0.2000', 'prefix 0.3000', 'ia3 0.9000'],
  );
  const html = page(results(given));
  assert.deepEqual(front(html), ['ia3', 'lora', 'full']);
  assert.match(html, /The best: full, 0\.1000 with 1,000,000 parameters\. No smaller one/);
});

test('losses of nothing and a single method draw too', () => {
  const html = page(results([outcome('lora', 'accuracy', 1, 500)]));
  assert.doesNotMatch(html, /NaN|Infinity|undefined/);
});
