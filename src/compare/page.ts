/** A comparison as a table for the terminal, and as one HTML page without anything from elsewhere. */
import type { Metric } from '../tasks/index.ts';
import { curves, dots, escaped, sizes } from './chart.ts';
import { type Outcome, type Results, smoothed, stepsTo } from './runner.ts';

/** How a metric is read: an error as it is, and less is better; all else as a share. */
const readingOf = ({ error }: Metric) =>
  error ? { unit: '', scale: 1, sign: 1, digits: 4 } : { unit: ' %', scale: 100, sign: -1, digits: 1 };

const bestFirst = (outcomes: readonly Outcome[]): Outcome[] => {
  const { sign } = readingOf(outcomes[0]!.metric);
  return [...outcomes].sort((a, b) => sign * (a.metric.value - b.metric.value));
};

/** Headings and, for each method from the best down, its cells. */
export function table({ outcomes, loss }: Results): { head: string[]; rows: string[][] } {
  const { metric } = outcomes[0]!;
  const { unit, scale, digits } = readingOf(metric);
  const shown = (x: number) => (scale * x).toFixed(digits);
  const head = [
    'method',
    `${metric.name}${unit}`,
    '95 % interval',
    'trained',
    'of all %',
    `steps to loss ${loss.toPrecision(3)}`,
    'tokens/s',
    'peak MB',
    'kept MB',
    'time s',
    'lr',
  ];
  const rows = bestFirst(outcomes).map((o) => [
    o.name,
    shown(o.metric.value),
    `${shown(o.metric.low)} to ${shown(o.metric.high)}`,
    o.trainable.toLocaleString('en'),
    ((100 * o.trainable) / o.parameters).toFixed(3),
    String(stepsTo(o.losses, loss) ?? '–'),
    o.tokensPerSecond.toFixed(0),
    o.peakMb.toFixed(0),
    (o.size / 1e6).toFixed(2),
    o.seconds.toFixed(0),
    String(o.lr),
  ]);
  return { head, rows };
}

/** On what machine speed and time were measured; if on several, which methods on which, for those do not compare. */
export function machines(outcomes: readonly Outcome[]): string {
  const found = Map.groupBy(outcomes, ({ machine }) => machine);
  const all = [...found].map(([machine, those]) =>
    found.size === 1 ? machine : `${those.map(({ name }) => name).join(', ')} on ${machine}`,
  );
  const warned = found.size > 1 ? ' Compare speed and time only within a machine.' : '';
  return `Speed and time: ${all.join('; ')}.${warned}`;
}

const style = `
:root { color-scheme: light dark; --ink: #1d232b; --soft: #667180; --line: #dfe4ea; --page: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaef; --soft: #98a3b1; --line: #313943; --page: #14181d; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: .2rem; } h2 { font-size: 1.05rem; margin-top: 2.2rem; } p { color: var(--soft); } .found { color: var(--ink); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .84rem; }
th, td { padding: .35rem .55rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); } th:first-child, td:first-child { text-align: left; } td:first-child { font-weight: 600; }
svg { width: 100%; height: auto; } .grid { stroke: var(--line); } .mark { stroke: var(--soft); stroke-dasharray: 4 4; }
.label { fill: var(--soft); font-size: 12px; } .name { fill: var(--ink); font-size: 13px; }
svg:has(polyline:hover) polyline { opacity: .2; } svg polyline:hover { opacity: 1; stroke-width: 3; }
`;

/** Colours that stay apart for most eyes, around the wheel at one lightness. */
const colours = (count: number) =>
  Array.from({ length: count }, (_, i) => {
    const colour = `oklch(${i % 2 === 0 ? 0.62 : 0.7} 0.15 ${Math.round((i * 360) / count)})`;
    return `circle.c${i} { fill: ${colour}; } line.c${i}, polyline.c${i} { stroke: ${colour}; } .t${i} { fill: ${colour}; }`;
  }).join('\n');

export function page(results: Results): string {
  const { outcomes, failed, before, title, date } = results;
  const series = new Map(outcomes.map(({ name }, i) => [name, i]));
  const { head, rows } = table(results);
  const cells = (tag: string, list: readonly string[]) => list.map((c) => `<${tag}>${escaped(c)}</${tag}>`).join('');
  const { name: metric, count, of } = outcomes[0]!.metric;
  const { unit, scale, digits } = readingOf(outcomes[0]!.metric);
  const bars = bestFirst(outcomes).map(({ name, trainable, metric: { value, low, high } }) => ({
    name,
    value: scale * value,
    low: scale * low,
    high: scale * high,
    size: trainable,
    series: series.get(name)!,
  }));
  const lines = outcomes.map((o: Outcome) => ({
    name: o.name,
    values: smoothed(o.losses),
    series: series.get(o.name)!,
  }));
  const [top] = bars as [(typeof bars)[0]];
  const near = bars.filter(({ low, high }) => low <= top.value && top.value <= high);
  const least = near.reduce((a, b) => (b.size < a.size ? b : a));
  const told = ({ name, value, size }: typeof top) =>
    `${name}, ${value.toFixed(digits)}${unit} with ${size.toLocaleString('en')} parameters`;
  const beside =
    least === top
      ? 'No smaller one has an interval that reaches it.'
      : `The smallest whose interval reaches it: ${told(least)}.`;
  const mark = before && { value: scale * before.value, name: 'before training' };
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Methods compared: ${escaped(title)}</title><style>${style}${colours(outcomes.length)}</style></head><body>
<h1>Methods compared</h1>
<p>${escaped(title)} · ${date} · the same rows, steps and batches for every method; measured on ${count} ${of}.</p>
<p class="found">The best: ${escaped(told(top))}. ${escaped(beside)}</p>
<h2>${escaped(metric)}${unit}, with its 95 % interval</h2>
${dots(bars, metric, mark)}
<h2>The same against size</h2>
${sizes(bars, `${metric} against size`, 'parameters that learn')}
<p>Along the dashed line are the methods that no smaller one reaches; where intervals overlap widely, another draw of rows may tell otherwise.</p>
<h2>Loss while training</h2>
${curves(lines, 'loss')}
<h2>In numbers</h2>
<div class="wide"><table><thead><tr>${cells('th', head)}</tr></thead><tbody>
${rows.map((row) => `<tr>${cells('td', row)}</tr>`).join('\n')}
</tbody></table></div>
${failed.map(({ name, reason }) => `<p>${escaped(name)} came to no result: ${escaped(reason)}</p>`).join('\n')}
<p>${escaped(machines(outcomes))}</p>
<p>trained: parameters that learn. kept: what has to be stored for the task beside the base. peak: resident memory of the process.</p>
</body></html>
`;
}
