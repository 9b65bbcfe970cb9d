import assert from 'node:assert/strict';
import test from 'node:test';
import { type Outcome, page, type Results, resultTables, table } from './index.ts';

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

/** Names of the points of the second chart that the Pareto frontier goes through, from the smallest. */
const frontierOf = (html: string) => {
  const [, chart] = html.match(/<svg [^]*?<\/svg>/g)!;
  const [, line] = /<polyline class="mark"[^>]* points="([^"]*)"/.exec(chart!)!;
  const dots = [...chart!.matchAll(/cx="([^"]*)" cy="([^"]*)" r="5"><title>([\w-]+):/g)];
  const names = new Map(dots.map(([, cx, cy, name]) => [`${cx},${cy}`, name]));
  assert.equal(names.size, 4);
  return line!
    .split(' ')
    .map((place) => names.get(place))
    .reverse();
};

const parameters = { full: 1e6, lora: 5e4, prefix: 6e4, ia3: 1e3 } as const;

/** The page of a comparison whose table begins with these cells, and whose frontier is ia3, lora, full. */
function checkedPage(
  metric: 'accuracy' | 'mse',
  values: Readonly<Record<keyof typeof parameters, number>>,
  cells: readonly string[],
): string {
  const methods = Object.keys(values) as (keyof typeof parameters)[];
  const compared = results(methods.map((name) => outcome(name, metric, values[name], parameters[name])));
  const { head, rows } = table(compared);
  assert.deepEqual([head[1], ...rows.map(([name, value]) => `${name} ${value}`)], cells);
  const html = page(compared);
  assert.deepEqual(frontierOf(html), ['ia3', 'lora', 'full']);
  return html;
}

/** The words of the page, without its markup. */
const wordsOf = (html: string) => html.replace(/^[^]*<body>/, '').replaceAll(/<script>[^]*?<\/script>|<[^>]*>/g, ' ');

test('shares: the highest is first, and the frontier goes through what nothing smaller reaches', () => {
  const html = checkedPage('accuracy', { full: 0.9, lora: 0.88, prefix: 0.8, ia3: 0.7 }, [
    'accuracy %',
    ...['full 90.0', 'lora 88.0', 'prefix 80.0', 'ia3 70.0'],
  ]);
  assert.match(html, /Highest accuracy: full, 90\.0 % with 1,000,000 trained parameters\./);
});

test('errors: the lowest is first, and they are no shares', () => {
  const html = checkedPage('mse', { ia3: 0.9, lora: 0.2, prefix: 0.3, full: 0.1 }, [
    'mse',
    ...['full 0.1000', 'lora 0.2000', 'prefix 0.3000', 'ia3 0.9000'],
  ]);
  assert.match(html, /Lowest mse: full, 0\.1000 with 1,000,000 trained parameters\./);
});

test('losses of nothing and a single method draw too', () => {
  const html = page(results([outcome('lora', 'accuracy', 1, 500)]));
  assert.doesNotMatch(html, /NaN|Infinity|undefined/);
  assert.doesNotMatch(wordsOf(html), /\bbest\b/i);
});

test('without hits no method is called best, nothing is highlighted, and one line says why', () => {
  const html = page(results([outcome('lora', 'accuracy', 0.95, 500), outcome('ia3', 'accuracy', 0.5, 50)]));
  assert.match(html, /No method is called best: that takes a paired test, and these results do not say which rows/);
  assert.equal(wordsOf(html).match(/\bbest\b/gi)?.length, 1);
  assert.doesNotMatch(html, /<rect class="shade"|Paired tests/);
});

/** Outcomes on 40 rows, of which each method gets the first ones right. */
const withHits = (right: Readonly<Record<string, number>>) =>
  Object.entries(right).map(([name, count], i) => ({
    ...outcome(name, 'accuracy', count / 40, 1000 - 100 * i),
    hits: '1'.repeat(count).padEnd(40, '0'),
    rows: 'abc',
  }));

test('a method that paired tests tell from every other one is called best', () => {
  const html = page(results(withHits({ lora: 40, ia3: 20, prompt: 22 })));
  assert.match(html, /Best: lora, 100\.0 % with 1,000 trained parameters\. By paired tests on the same 40 rows, it is/);
  assert.equal(html.match(/<rect class="shade"/g)?.length, 1);
  const { length: differences } = html.match(/<td>&lt; 0\.001<\/td><td>yes<\/td>/g)!;
  assert.equal(differences, 2);
});

test('of methods that paired tests do not tell apart none is best, and the smallest of them is named', () => {
  const html = page(results(withHits({ lora: 38, ia3: 36, prompt: 10 })));
  assert.match(
    html,
    /Highest accuracy: lora, .*No method is best: .* do not tell it from ia3\. The smallest of these: ia3/,
  );
  assert.equal(html.match(/<rect class="shade"/g)?.length, 2);
  assert.match(html, /<td>prompt<\/td><td>28<\/td><td>0<\/td><td>&lt; 0\.001<\/td><td>yes<\/td>/);
});

test('hits of other rows are not paired', () => {
  const [lora, ia3] = withHits({ lora: 40, ia3: 10 });
  assert.match(page(results([lora!, { ...ia3!, rows: 'def' }])), /No method is called best/);
});

test('an axis of accuracies begins where they are; a base far below them stands in a note', () => {
  const outcomes = [outcome('lora', 'accuracy', 0.95, 500), outcome('ia3', 'accuracy', 0.93, 50)];
  const before = { ...outcomes[0]!.metric, value: 0.5 };
  const [chart] = page({ ...results(outcomes), before }).match(/<svg [^]*?<\/svg>/)!;
  const ticks = [...chart.matchAll(/<text class="label"[^>]*middle">([\d.]+)</g)].map(([, tick]) => Number(tick));
  assert.ok(ticks.length >= 4 && Math.min(...ticks) >= 86, ticks.join(' '));
  assert.match(chart, />◂ before training: 50\.0 %</);
  const near = page({ ...results(outcomes), before: { ...before, value: 0.9 } });
  assert.match(near, /<line class="mark"[^>]*\/><text class="label"[^>]*>before training: 90\.0 %</);
});

test('at first the curves of few methods are drawn, and each has a box that shows it', () => {
  const names = ['full', 'lora', 'dora', 'ia3', 'prefix', 'prompt'];
  const html = page(results(names.map((name, i) => outcome(name, 'accuracy', 0.9 - i / 100, 1000 - i))));
  const lines = [...html.matchAll(/<polyline class="s\d+" data-curve="(\d+)"( hidden)?/g)];
  assert.equal(lines.length, 6);
  const shown = lines.filter(([, , hidden]) => !hidden).map(([, series]) => series);
  assert.deepEqual(shown, ['0', '5']);
  const checked = [...html.matchAll(/<input type="checkbox" value="(\d+)" checked>/g)].map(([, series]) => series);
  assert.deepEqual(checked, shown);
  assert.equal(html.match(/<input type="checkbox"/g)?.length, 6);
});

test('speed, time and memory stand in a table for each machine', () => {
  const [lora, ia3, full] = ['lora', 'ia3', 'full'].map((name) => outcome(name, 'accuracy', 0.5, 10));
  const titles = (outcomes: readonly Outcome[]) => resultTables(results(outcomes)).map(({ title }) => title);
  assert.deepEqual(titles([lora!, ia3!]), ['Quality and size', 'Speed and memory on A, 2 threads, mixed']);
  const elsewhere = { ...ia3!, machine: 'B, 4 threads, float32' };
  const [quality, onA, onB, ...more] = resultTables(results([lora!, elsewhere, full!]));
  assert.deepEqual(
    [onA, onB].map((costs) => [costs!.title, costs!.head.join(), ...costs!.rows.map(([name]) => name)]),
    [
      ['Speed and memory on A, 2 threads, mixed', 'method,tokens/s,time s,peak MB', 'lora', 'full'],
      ['Speed and memory on B, 4 threads, float32', 'method,tokens/s,time s,peak MB', 'ia3'],
    ],
  );
  assert.equal(more.length, 0);
  assert.doesNotMatch(quality!.head.join(), /tokens|time|peak/);
  assert.match(page(results([lora!, elsewhere])), /Each machine has a table of its own[^]*>B, 4 threads, float32</);
});
