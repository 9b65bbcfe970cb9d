import assert from 'node:assert/strict';
import test from 'node:test';
import { machines, type Outcome, page, type Results, table } from './index.ts';

const outcome = (name: string, metric: 'accuracy' | 'mse', value: number, trainable: number): Outcome => ({
  name,
  method: name,
  lr: 1e-3,
  metric: {
    ...{ name: metric, value, low: value - 0.05, high: value + 0.05, count: 40, of: 'rows' },
    ...(metric === 'mse' && { error: true }),
  },
  trainable,
  parameters: 1e6,
  losses: [2, 1, 0],
  tokensPerSecond: 100,
  peakMb: 500,
  size: 4000,
  seconds: 9,
  machine: 'A, 2 threads, mixed',
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

const parameters = { full: 1e6, lora: 5e4, prefix: 6e4, ia3: 1e3 } as const;

/** The page of a comparison whose table begins with these cells, and whose line goes along ia3, lora, full. */
function told(
  metric: 'accuracy' | 'mse',
  values: Readonly<Record<keyof typeof parameters, number>>,
  cells: readonly string[],
): string {
  const methods = Object.keys(values) as (keyof typeof parameters)[];
  const given = results(methods.map((name) => outcome(name, metric, values[name], parameters[name])));
  const { head, rows } = table(given);
  assert.deepEqual([head[1], ...rows.map(([name, value]) => `${name} ${value}`)], cells);
  const html = page(given);
  assert.deepEqual(front(html), ['ia3', 'lora', 'full']);
  return html;
}

test('shares: the most is the best, and the line goes along what nothing smaller reaches', () => {
  const html = told('accuracy', { full: 0.9, lora: 0.88, prefix: 0.8, ia3: 0.7 }, [
    'accuracy %',
    ...['full 90.0', 'lora 88.0', 'prefix 80.0', 'ia3 70.0'],
  ]);
  assert.match(html, /The best: full, 90\.0 %.*The smallest whose interval reaches it: lora, 88\.0 % with 50,000 /);
});

test('errors: the least is the best, and they are no shares', () => {
  const html = told('mse', { ia3: 0.9, lora: 0.2, prefix: 0.3, full: 0.1 }, [
    'mse',
    ...['full 0.1000', 'lora 0.2000', 'prefix 0.3000', 'ia3 0.9000'],
  ]);
  assert.match(html, /The best: full, 0\.1000 with 1,000,000 parameters\. No smaller one/);
});

test('losses of nothing and a single method draw too', () => {
  const html = page(results([outcome('lora', 'accuracy', 1, 500)]));
  assert.doesNotMatch(html, /NaN|Infinity|undefined/);
});

test('one machine is named alone, several with the methods that ran on each', () => {
  const [lora, ia3, full] = ['lora', 'ia3', 'full'].map((name) => outcome(name, 'accuracy', 0.5, 10));
  assert.equal(machines([lora!, ia3!]), 'Speed and time: A, 2 threads, mixed.');
  const elsewhere = { ...ia3!, machine: 'B, 4 threads, float32' };
  const told = machines([lora!, elsewhere, full!]);
  assert.match(told, /lora, full on A, 2 threads, mixed; ia3 on B, 4 threads, float32\. Compare .* only within/);
  assert.ok(page(results([lora!, elsewhere])).includes('ia3 on B, 4 threads, float32'));
});
