/** A comparison as one HTML page that loads nothing else. */
import { type Curve, curveChart, curveScript, escaped, intervalChart, sizeChart } from './chart.ts';
import { pairedTests, type Verdict } from './pairs.ts';
import type { Outcome, Results } from './results.ts';
import { smoothed } from './runner.ts';
import { bestFirst, metricFormat, resultTables, type Table } from './tables.ts';

const style = `
:root { color-scheme: light dark; --ink: #1d232b; --soft: #5c6773; --line: #e1e6eb; --shade: #eef4ee; --page: #fff; --lightness: .55; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaef; --soft: #9aa5b2; --line: #2f3740; --shade: #1d2a22; --page: #14181d; --lightness: .72; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 1128px; margin: 2.5rem auto; padding: 0 24px; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.1rem; margin: 2.6rem 0 .6rem; }
h3 { font-size: .95rem; margin: 1.4rem 0 .3rem; }
p { max-width: 62rem; margin: .4rem 0; }
.note { color: var(--soft); font-size: .9rem; }
.verdict { border-left: 4px solid var(--soft); padding: .1rem 0 .1rem .9rem; margin: 1.2rem 0; }
figure { margin: 0; }
svg { display: block; width: 100%; height: auto; }
svg [hidden] { display: none; }
text { font-size: 13px; } .label { fill: var(--soft); font-size: 12px; } .name { fill: var(--series, var(--ink)); }
.grid { stroke: var(--line); } .shade { fill: var(--shade); } .mark { stroke: var(--soft); stroke-dasharray: 5 4; }
circle { fill: var(--series); } .interval { stroke: var(--series); stroke-width: 3; stroke-opacity: .5; } .thin { stroke-width: 2; stroke-opacity: .25; }
polyline { fill: none; stroke: var(--series); stroke-width: 1.8; stroke-linejoin: round; } polyline.mark { stroke: var(--soft); stroke-width: 1.2; }
svg:has(polyline[data-curve]:hover) polyline { opacity: .2; } svg polyline[data-curve]:hover { opacity: 1; stroke-width: 3; }
.legend { display: flex; flex-wrap: wrap; gap: .35rem; margin: .5rem 0; }
.legend label, .legend button { font: inherit; font-size: .85rem; color: inherit; background: none; border: 1px solid var(--line); border-radius: 1rem; padding: .1rem .7rem; cursor: pointer; }
.legend label:not(:has(:checked)) { color: var(--soft); } .legend label:hover, .legend button:hover { border-color: var(--soft); }
.legend label:has(:focus-visible) { outline: 2px solid var(--soft); } .legend input { position: absolute; opacity: 0; }
.legend span { margin-left: .8rem; color: var(--soft); font-size: .85rem; } .legend button { color: var(--ink); }
.legend i { display: inline-block; width: 1.5rem; margin-right: .45rem; border-top: 3px solid var(--series); vertical-align: .25em; }
.legend label:not(:has(:checked)) i { opacity: .35; }
.wide { overflow-x: auto; } .tables { display: flex; flex-wrap: wrap; gap: 0 3rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .87rem; }
th, td { padding: .3rem .8rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line); vertical-align: bottom; }
td { white-space: nowrap; } th { font-weight: 600; color: var(--soft); max-width: 10.5rem; }
th + th, td + td { padding-left: .8rem; } th:first-child, td:first-child { text-align: left; } td:first-child { font-weight: 600; }
`;

const dashes = ['none', '8 4', '2 4', '10 4 2 4'];

/** A colour for each type of method; methods of one type differ in lightness, and their curves in their dashes. */
function seriesStyle(outcomes: readonly Outcome[]): string {
  const types = [...new Set(outcomes.map(({ method }) => method))];
  return outcomes
    .map(({ method }, series) => {
      const hue = Math.round((types.indexOf(method) * 360) / types.length + 20);
      const variant = outcomes.slice(0, series).filter((other) => other.method === method).length;
      const lighter = (0.09 * ((variant + 1) >> 1) * (variant % 2 === 0 ? -1 : 1)).toFixed(2);
      const dash = dashes[variant % dashes.length]!;
      return (
        `.s${series} { --series: oklch(calc(var(--lightness) + ${lighter}) .15 ${hue}); }` +
        (dash === 'none' ? '' : ` polyline.s${series} { stroke-dasharray: ${dash}; }`)
      );
    })
    .join('\n');
}

/** Names in a sentence. */
const listed = (names: readonly string[]) =>
  names.length < 2 ? names.join('') : `${names.slice(0, -1).join(', ')} and ${names.at(-1)}`;

/** Which method is best, as far as paired tests say so. */
function verdictText({ outcomes }: Results, verdict: Verdict | undefined): string {
  if (outcomes.length < 2) return '';
  const ranked = bestFirst(outcomes);
  const [leader] = ranked as [Outcome];
  const { unit, scale, digits } = metricFormat(leader.metric);
  const withSize = ({ name, metric, trainable }: Outcome) =>
    `${name}, ${(scale * metric.value).toFixed(digits)}${unit} with ${trainable.toLocaleString('en')} trained parameters`;
  const order = leader.metric.error ? 'Lowest' : 'Highest';
  const first = `${order} ${leader.metric.name}: ${withSize(leader)}.`;
  if (!verdict) {
    return `${first} No method is called best: that takes a paired test, and these results do not say which rows each method gets right.`;
  }
  const test = `paired tests on the same ${leader.hits!.length} ${leader.metric.of}`;
  const equal = verdict.tests.filter(({ worse }) => !worse).map(({ name }) => name);
  const group = equal.length > 4 ? `${equal.length} of the other ${verdict.tests.length} methods` : listed(equal);
  if (equal.length === 0) return `Best: ${withSize(leader)}. By ${test}, it is better than every other method.`;
  const smallest = ranked
    .filter((o) => o === leader || equal.includes(o.name))
    .reduce((a, b) => (b.trainable < a.trainable ? b : a));
  const advice =
    smallest === leader ? 'It is also the smallest of these.' : `The smallest of these: ${withSize(smallest)}.`;
  return `${first} No method is best: ${test} do not tell it from ${group}. ${advice}`;
}

const tableHtml = ({ head, rows }: Pick<Table, 'head' | 'rows'>) => {
  const cells = (tag: string, list: readonly string[]) => list.map((c) => `<${tag}>${escaped(c)}</${tag}>`).join('');
  const body = rows.map((row) => `<tr>${cells('td', row)}</tr>`).join('\n');
  return `<div class="wide"><table><thead><tr>${cells('th', head)}</tr></thead><tbody>\n${body}\n</tbody></table></div>`;
};

function pairedSection({ leader, tests, pairs }: Verdict): string {
  const p = (value: number) => (value < 0.001 ? '< 0.001' : value.toFixed(3));
  const rows = tests.map((t) => [t.name, String(t.onlyLeader), String(t.onlyThis), p(t.p), t.worse ? 'yes' : 'no']);
  const head = ['method', `only ${leader} is right`, 'only this method is right', 'p', `${leader} is better`];
  return `<h2>Paired tests</h2>
<p class="note">Rows that only one of the two methods gets right, and the p-value of McNemar's exact test, adjusted by Holm's method for all ${pairs} pairs of methods. A difference counts from p below 0.05.</p>
${tableHtml({ head, rows })}`;
}

/** The training curves, each with a box that shows or hides it. */
function curvesFigure(curves: readonly Curve[]): string {
  const boxes = curves.map(
    ({ name, series, shown }) =>
      `<label class="s${series}"><input type="checkbox" value="${series}"${shown ? ' checked' : ''}><i></i>${escaped(name)}</label>`,
  );
  const buttons = ['few', 'all', 'none'].map((choice) => `<button type="button" value="${choice}">${choice}</button>`);
  return `<figure class="curves">
${curveChart(curves, 'training loss')}
<div class="legend">${boxes.join('')}<span>Show ${buttons.join(' ')}</span></div>
</figure>`;
}

/** Returns the HTML of the page. @throws TypeError without outcomes */
export function page(results: Results): string {
  const { outcomes, failed, before, title, date } = results;
  const ranked = bestFirst(outcomes);
  const [leader] = ranked as [Outcome];
  const { name: metricName, count, of } = leader.metric;
  const { unit, scale, digits } = metricFormat(leader.metric);
  const verdict = pairedTests(ranked);
  const series = new Map(outcomes.map(({ name }, i) => [name, i]));
  const points = ranked.map(({ name, trainable, metric: { value, low, high } }) => ({
    name,
    value: scale * value,
    low: scale * low,
    high: scale * high,
    size: trainable,
    series: series.get(name)!,
  }));
  const written = (x: number) => x.toFixed(digits);
  const rows = points.map((point) => ({
    ...point,
    label: `${written(point.value)} (${written(point.low)} to ${written(point.high)})`,
    shaded: verdict?.tests.every(({ name, worse }) => name !== point.name || !worse) ?? false,
  }));
  const reference = before && {
    value: scale * before.value,
    label: `before training: ${written(scale * before.value)}${unit}`,
  };
  const bySize = [...outcomes].sort((a, b) => a.trainable - b.trainable);
  const shown = new Set([leader, bySize[0], bySize.at(-1)]);
  const curves = outcomes.map((o, i) => ({ name: o.name, values: smoothed(o.losses), series: i, shown: shown.has(o) }));
  const [quality, ...costs] = resultTables(results) as [Table, ...Table[]];
  const metricTitle = `${metricName.replace(/^[a-z]+$/, (word) => word[0]!.toUpperCase() + word.slice(1))}${unit && ' in %'}`;
  const alone = verdict?.tests.every(({ worse }) => worse);
  const shading =
    verdict && `Shaded: ${alone ? 'the best' : `${verdict.leader}, and what paired tests do not tell from it`}. `;
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Methods compared: ${escaped(title)}</title><style>${style}${seriesStyle(outcomes)}</style></head><body>
<h1>${escaped(title)}</h1>
<p class="note">Methods compared, ${date}. Every method is trained on the same rows in the same order, and measured on ${count} ${of}.</p>
<p class="verdict">${escaped(verdictText(results, verdict))}</p>
<h2>${escaped(metricTitle)}, with 95 % confidence intervals</h2>
<figure>${intervalChart(rows, metricName, reference)}</figure>
<p class="note">${escaped(shading ?? '')}The axis begins where the values are.</p>
<h2>${escaped(metricTitle)}, against trained parameters</h2>
<figure>${sizeChart(points, `${metricName} against trained parameters`, 'trained parameters')}</figure>
<p class="note">Dashed: the Pareto frontier, the methods that no smaller one reaches in these measurements. Where intervals overlap widely, other rows can change it.</p>
<h2>Training loss</h2>
${curvesFigure(curves)}
<p class="note">Choose methods by a click. At first: the ${leader.metric.error ? 'lowest' : 'highest'} ${escaped(metricName)}, the fewest and the most trained parameters. Losses are smoothed, on a logarithmic axis; those of a method with a term of its own in the loss (AdaLoRA), or with a head where others generate text, cannot be compared with the others.</p>
${verdict ? pairedSection(verdict) : ''}
<h2>${escaped(quality.title)}</h2>
${tableHtml(quality)}
<p class="note">trained: parameters that are trained. Steps to loss: until the smoothed training loss is this low; –: never. Stored: files for the task, without the base model. lr: the highest learning rate.</p>
<h2>Speed and memory</h2>
<p class="note">${costs.length > 1 ? 'Each machine has a table of its own: compare within one only. ' : ''}Time of training, without loading. Peak: resident memory of the training process.</p>
<div class="tables">
${costs.map((cost) => `<div><h3>${escaped(cost.title.replace(/^Speed and memory on /, ''))}</h3>\n${tableHtml(cost)}</div>`).join('\n')}
</div>
${failed.map(({ name, reason }) => `<p>${escaped(name)} failed: ${escaped(reason)}</p>`).join('\n')}
<script>${curveScript}</script>
</body></html>
`;
}
