/** The results of a comparison as tables of text, for the terminal and for the page. */
import type { Metric } from '../tasks/index.ts';
import type { Outcome, Results } from './results.ts';
import { stepsTo } from './runner.ts';

/** How values of a metric are written: an error in its own unit, anything else in percent. */
export interface MetricFormat {
  /** What stands after the metric's name. */
  readonly unit: '' | ' %';
  readonly scale: 1 | 100;
  readonly digits: number;
}

export const metricFormat = ({ error }: Metric): MetricFormat =>
  error ? { unit: '', scale: 1, digits: 4 } : { unit: ' %', scale: 100, digits: 1 };

/** Returns the outcomes by their value, the best first: the lowest of an error, the highest of anything else. */
export function bestFirst(outcomes: readonly Outcome[]): Outcome[] {
  const sign = outcomes[0]?.metric.error ? 1 : -1;
  return [...outcomes].sort((a, b) => sign * (a.metric.value - b.metric.value));
}

/** A table whose rows are methods, the best first, with the name in the first column. */
export interface Table {
  readonly title: string;
  readonly head: string[];
  readonly rows: string[][];
}

type Column = readonly [head: string, cell: (outcome: Outcome) => string];

function columnsOf({ outcomes, loss }: Results): { quality: Column[]; size: Column[]; cost: Column[] } {
  const { metric } = outcomes[0]!;
  const { unit, scale, digits } = metricFormat(metric);
  const text = (x: number) => (scale * x).toFixed(digits);
  return {
    quality: [
      ['method', (o) => o.name],
      [`${metric.name}${unit}`, (o) => text(o.metric.value)],
      ['95 % confidence interval', (o) => `${text(o.metric.low)} to ${text(o.metric.high)}`],
    ],
    size: [
      ['trained', (o) => o.trainable.toLocaleString('en')],
      ['% of all', (o) => ((100 * o.trainable) / o.parameters).toFixed(3)],
      [`steps to loss ${loss.toPrecision(3)}`, (o) => String(stepsTo(o.losses, loss) ?? '–')],
      ['stored MB', (o) => (o.size / 1e6).toFixed(2)],
      ['lr', (o) => String(o.lr)],
    ],
    cost: [
      ['tokens/s', (o) => o.tokensPerSecond.toFixed(0)],
      ['time s', (o) => o.seconds.toFixed(0)],
      ['peak MB', (o) => o.peakMb.toFixed(0)],
    ],
  };
}

const filled = (title: string, columns: readonly Column[], outcomes: readonly Outcome[]): Table => ({
  title,
  head: columns.map(([head]) => head),
  rows: outcomes.map((outcome) => columns.map(([, cell]) => cell(outcome))),
});

/**
 * Returns a table of what a method reaches, and one of what it costs for each machine: times and memory that were measured on
 * different machines do not stand in one column.
 */
export function resultTables(results: Results): Table[] {
  const outcomes = bestFirst(results.outcomes);
  const { quality, size, cost } = columnsOf(results);
  const onMachines = Map.groupBy(outcomes, ({ machine }) => machine);
  return [
    filled('Quality and size', [...quality, ...size], outcomes),
    ...[...onMachines].map(([machine, those]) =>
      filled(`Speed and memory on ${machine}`, [quality[0]!, ...cost], those),
    ),
  ];
}

/** Returns one table of everything, whatever machines the outcomes come from: name, value, interval, then sizes and costs. */
export function table(results: Results): { head: string[]; rows: string[][] } {
  const { quality, size, cost } = columnsOf(results);
  const [trained, share, steps, stored, lr] = size as [Column, Column, Column, Column, Column];
  const [speed, time, peak] = cost as [Column, Column, Column];
  return filled('', [...quality, trained, share, steps, speed, peak, stored, time, lr], bestFirst(results.outcomes));
}
