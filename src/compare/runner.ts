/** Runs a comparison: each method trains in its own process, one after the other, so that time and peak memory are its own. */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { type ErrorJson, fromWire, GraftError, packageRoot, toWire } from '../base/index.ts';
import { type Format, localPaths, pathsOf, type RowSource, type Truncation } from '../data/index.ts';
import { processor } from '../engine/index.ts';
import { digestOfPath, readJsonObject, writeText } from '../io/index.ts';
import { writtenBy } from '../methods/index.ts';
import type { Quantize } from '../models/index.ts';
import type { TaskName } from '../nn/index.ts';
import type { Metric } from '../tasks/index.ts';
import type { Recipe, TrainEvent, TrainResult } from '../train/index.ts';
import { type Comparison, type Contestant, roundedName } from './comparison.ts';
import { noMetric, requireMetric } from './metric.ts';
import type { Failure, Outcome, Results } from './results.ts';

type Json = Record<string, unknown>;

/** Runs a graft command in its own process. @returns its last line of output; `onEvent` gets each line, parsed */
function graft(
  args: readonly string[],
  onEvent: (event: Json) => void,
  signal: AbortSignal | undefined,
): Promise<Json> {
  const child = spawn(process.execPath, [join(packageRoot, 'bin', 'graft.js'), ...args, '--json'], {
    stdio: ['ignore', 'pipe', 'pipe'],
    ...(signal && { signal, killSignal: 'SIGTERM' }),
  });
  let last: Json = {};
  let errorText = '';
  createInterface(child.stdout).on('line', (text) => {
    if (!text.startsWith('{')) {
      errorText += `${text}\n`; // a library prints
      return;
    }
    last = fromWire(JSON.parse(text)) as Json;
    onEvent(last);
  });
  child.stderr.on('data', (data: Buffer) => {
    errorText = (errorText + data.toString()).slice(-2000);
  });
  return new Promise((resolve, reject) => {
    // Of an aborted child, 'close' follows: only then it holds nothing any more.
    child.on('error', (error) => signal?.aborted || reject(error));
    child.on('close', (code) => {
      if (signal?.aborted) {
        reject(new GraftError('interrupted', 'the comparison was stopped', { cause: signal.reason }));
        return;
      }
      if (code === 0) {
        resolve(last);
        return;
      }
      const known = last.error === undefined ? undefined : GraftError.from(last.error as ErrorJson);
      const [line = ''] = errorText.trim().split('\n').slice(-1);
      reject(new GraftError('environment', known?.message ?? (line || `code ${code}`), { cause: known }));
    });
  });
}

/** Bytes of the safetensors files below a directory, without the state of the optimizer. */
function storedBytes(dir: string): number {
  return readdirSync(dir, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith('.safetensors') && entry.name !== 'training.safetensors')
    .reduce((sum, entry) => sum + statSync(join(entry.parentPath, entry.name)).size, 0);
}

/** The result of measuring rows, as far as a comparison reads it. */
interface Measured {
  readonly metrics: readonly Metric[];
  readonly hits?: readonly boolean[];
}

interface RowsOptions {
  readonly adapter?: string;
  readonly format?: Format;
  readonly columns?: Readonly<Record<string, string>> | undefined;
  readonly limit?: number | undefined;
  readonly delimiter?: string | undefined;
  readonly truncate?: Truncation | undefined;
  readonly trainOn?: 'completion' | 'all';
  readonly maxLength?: number;
  readonly stride?: number;
  readonly signal?: AbortSignal | undefined;
}

/** The part of a session that a comparison measures with. */
export interface MeasuringSession extends AsyncDisposable {
  load(
    model: string,
    settings: {
      readonly quantize: Quantize;
      readonly task: TaskName | undefined;
      readonly adapters: readonly string[];
      readonly signal: AbortSignal | undefined;
    },
  ): PromiseLike<MeasuringModel>;
}

interface MeasuringModel extends AsyncDisposable {
  classify(
    rows: RowSource,
    options: RowsOptions & { readonly labels: readonly string[] },
  ): PromiseLike<{ readonly accuracy: Metric | null; readonly hits?: readonly boolean[] }>;
  evaluate(rows: RowSource, options: RowsOptions): PromiseLike<Measured>;
}

/** Makes a session: each measurement has its own, so that it has all of the memory. */
export type OpenSession = () => MeasuringSession;

interface Context {
  readonly comparison: Comparison;
  readonly openSession: OpenSession;
  readonly onProgress: (line: string) => void;
  readonly signal: AbortSignal | undefined;
}

/**
 * The value in a file that `writeCached` wrote, if it was written for the same `key`.
 * @throws GraftError 'input' for a damaged file
 */
function readCached<T>(file: string, key: unknown, onOther: () => void): T | undefined {
  if (!existsSync(file)) return undefined;
  const stored = readJsonObject(file) as { key: string; value: unknown };
  if (stored.key === JSON.stringify(key)) return fromWire(stored.value) as T;
  onOther();
  return undefined;
}

function writeCached<T extends object>(file: string, key: unknown, value: T): T {
  writeText(file, JSON.stringify({ key: JSON.stringify(key), value: toWire(value) }));
  return value;
}

/** Digest of rows: of rows in memory, or of all files that the paths stand for, with their names. */
function digestOf(rows: RowSource): string {
  const paths = pathsOf(rows);
  const content =
    paths.length === 0 ? rows : paths.map((path) => [path, localPaths(path).map((file) => digestOfPath(file))]);
  return createHash('sha256').update(JSON.stringify(content)).digest('hex').slice(0, 16);
}

/** What the files of a recipe hold: an outcome is of these rows and this model. */
const contentsOf = ({ model, data }: Recipe) => [
  existsSync(model) ? digestOfPath(model) : model,
  ...[data.train, data.eval].map((rows) => rows && digestOf(rows)),
];

/**
 * Trains and measures every method that has no outcome in the directory yet, so that a comparison that was interrupted is resumed.
 * @param openSession makes the sessions that it measures with
 * @param onProgress gets a line about each thing that happens
 * @param signal stops the comparison; it is resumed when it is run again
 * @returns the outcomes in the order of the comparison's methods
 * @throws GraftError 'usage' for a metric that the task does not have, and if every method fails
 */
export async function runComparison(
  comparison: Comparison,
  openSession: OpenSession,
  onProgress: (line: string) => void,
  signal?: AbortSignal,
): Promise<Results> {
  const { answers, contenders, dir } = comparison;
  const context: Context = { comparison, openSession, onProgress, signal };
  await requireMetric(comparison);
  mkdirSync(dir, { recursive: true });
  const outcomes: Outcome[] = [];
  const failed: Failure[] = [];
  const generative = [...contenders.values()].map(({ recipe }) => recipe).find(generatesText);
  let before: Metric | undefined;
  if (generative) {
    const file = join(dir, 'before.json');
    const { model, quantize, data } = generative;
    const key = { model, quantize, data, answers, contents: contentsOf(generative) };
    const onOther = () => onProgress('before: the model or the rows changed since it was measured');
    before =
      readCached<Metric>(file, key, onOther) ??
      writeCached(file, key, (await measure(generative, context, { model: generative.model })).metric);
    onProgress(`before: ${metricText(before)}`);
  }
  for (const [name, planned] of contenders) {
    const { recipe, rounded } = planned;
    const file = join(dir, name, 'outcome.json');
    const key = { recipe, rounded, answers, metric: comparison.metric, contents: contentsOf(recipe) };
    const onOther = () => onProgress(`${name}: its recipe, the model or the rows changed since it was measured`);
    const earlier = readCached<Outcome>(file, key, onOther);
    if (earlier) {
      outcomes.push(earlier);
      onProgress(`${name}: ${metricText(earlier.metric)} (measured earlier)`);
      continue;
    }
    let outcome: Outcome;
    try {
      outcome = writeCached(file, key, await outcomeOf(name, planned, outcomes, context));
    } catch (error) {
      // A mistake in the comparison concerns every method.
      if (error instanceof GraftError && (error.kind === 'usage' || error.kind === 'interrupted')) throw error;
      // One method that fails or diverges must not lose the results of the others.
      const reason = (error as Error).message;
      failed.push({ name, reason });
      onProgress(`${name}: failed: ${reason}`);
      continue;
    }
    outcomes.push(outcome);
    const { metric, tokensPerSecond, peakMb } = outcome;
    onProgress(`${name}: ${metricText(metric)}, ${tokensPerSecond.toFixed(0)} tokens/s, ${peakMb.toFixed(0)} MB`);
  }
  if (outcomes.length === 0) throw new GraftError('usage', 'every method failed', { place: dir });
  const lowest = outcomes.map(({ losses }) => Math.min(...smoothed(losses))).sort((a, b) => a - b);
  return {
    title: comparison.title,
    date: new Date().toISOString().slice(0, 10),
    before,
    outcomes,
    failed,
    loss: comparison.loss ?? lowest[lowest.length >> 1]!,
  };
}

const metricText = ({ name, value, low, high, count, of }: Metric) =>
  `${name} ${value.toFixed(4)} (95 % confidence interval ${low.toFixed(4)} to ${high.toFixed(4)}, ${count} ${of})`;

/** The metric that the comparison is about, and where it is a share of rows, which of them are right. */
type Measurement = Pick<Outcome, 'metric' | 'hits' | 'rows'>;

/** The costs of a method's training. */
type Costs = Omit<Outcome, keyof Measurement>;

/** A model, and the adapter on it. */
interface Measurable {
  readonly model: string;
  readonly adapter?: string;
}

/** What a run of the recipe wrote. */
function trainedBy({ model, method, run }: Recipe): Measurable {
  const written = writtenBy([method].flat());
  const path = join(run.dir, written);
  return written === 'model' ? { model: path } : { model, adapter: path };
}

/** Trains a method, or takes what another one trained, and measures it. */
async function outcomeOf(
  name: string,
  { recipe, rounded, of }: Contestant,
  earlier: readonly Outcome[],
  context: Context,
): Promise<Outcome> {
  const trained = of === undefined ? await train(name, recipe, context) : earlier.find((o) => o.name === of);
  if (!trained) throw new GraftError('state', `${of}, whose result is rounded, failed`);
  if (!rounded) return { ...trained, ...(await measure(recipe, context, trainedBy(recipe))) };
  const { out, bytes, notes } = await round(recipe, rounded, join(context.comparison.dir, name), context);
  for (const note of notes) context.onProgress(`${name}: ${note}`);
  try {
    return { ...trained, name, size: bytes, ...(await measure(recipe, context, { model: out })) };
  } finally {
    rmSync(out, { recursive: true });
  }
}

/** The result of `graft merge` and `graft quantize`, as far as a comparison reads it. */
interface Written {
  readonly out: string;
  readonly bytes: number;
  readonly notes: readonly string[];
}

/** Writes what a run of the recipe trained in a number format. */
async function round(
  recipe: Recipe,
  { to, group_size, embedding }: NonNullable<Contestant['rounded']>,
  dir: string,
  { signal }: Context,
): Promise<Written> {
  const { model, adapter } = trainedBy(recipe);
  const out = join(dir, roundedName(to));
  mkdirSync(dir, { recursive: true });
  rmSync(out, { recursive: true, force: true });
  const options = [
    ...[adapter === undefined ? 'quantize' : 'merge', '--model', model, '--to', to, '--out', out],
    ...(adapter === undefined ? [] : ['--adapter', adapter]),
    ...(group_size === undefined ? [] : ['--group-size', String(group_size)]),
    ...(embedding === undefined ? [] : ['--embedding', embedding]),
  ];
  return (await graft(options, () => {}, signal)) as unknown as Written;
}

async function train(name: string, recipe: Recipe, { comparison, onProgress, signal }: Context): Promise<Costs> {
  const { dir } = comparison;
  const file = join(dir, `${name}.json`);
  // The rows to measure on must not decide anything in training. JSON is YAML.
  writeText(file, JSON.stringify({ ...recipe, data: { ...recipe.data, eval: undefined } }));
  let start: Extract<TrainEvent, { type: 'start' }> | undefined;
  const onEvent = (line: Json) => {
    const event = line as TrainEvent;
    if (event.type === 'start') start = event;
    if (event.type === 'step' && event.step % 25 === 0)
      onProgress(`${name}: step ${event.step}, loss ${event.loss.toFixed(4)}`);
    if (event.type === 'warning') onProgress(`${name}: ${event.message}`);
  };
  const run = (...options: string[]) => graft(['train', file, ...options], onEvent, signal);
  const result = (await run().catch((error: GraftError) => {
    const { data: { startsOver } = {} } = (error.cause ?? {}) as Partial<GraftError>;
    if (typeof startsOver !== 'string') throw error;
    onProgress(`${name}: ${recipe.run.dir} has another run, which is kept in previous-N/`);
    return run(startsOver);
  })) as unknown as TrainResult;
  rmSync(join(recipe.run.dir, 'checkpoints'), { recursive: true, force: true });
  return {
    name,
    method: [recipe.method]
      .flat()
      .map(({ type }) => type)
      .join(' + '),
    lr: recipe.train.lr,
    trainable: start!.trainable,
    parameters: start!.parameters,
    losses: result.losses,
    tokensPerSecond: result.tokensPerSecond,
    peakMb: result.peakRssMb,
    size: storedBytes(result.adapter),
    seconds: result.seconds,
    machine: `${processor().model}, ${start!.threads} threads, ${start!.precision}`,
  };
}

/** The model generates the answer, rather than predict it with a task's head. */
const generatesText = ({ task = 'causal-lm' }: Recipe) => task === 'causal-lm';

/** Measures a model on the held-out rows of a recipe: its base, or what was trained. */
async function measure(
  recipe: Recipe,
  { comparison: { answers, metric: metricName }, openSession, signal }: Context,
  { model: path, adapter }: Measurable,
): Promise<Measurement> {
  const labels = generatesText(recipe) ? answers : undefined;
  const { format, eval: evalRows, columns, limit, delimiter, truncate } = recipe.data;
  // A new session: its memory is free again when the next method trains.
  await using session = openSession();
  await using model = await session.load(path, {
    quantize: path === recipe.model ? recipe.quantize : 'keep',
    task: recipe.task,
    adapters: adapter === undefined ? [] : [adapter],
    signal,
  });
  const options = {
    ...(adapter !== undefined && { adapter }),
    ...(format !== 'auto' && format !== 'batches' && { format }),
    columns: columns as RowsOptions['columns'],
    limit,
    delimiter,
    truncate,
    trainOn: recipe.data.train_on,
    maxLength: recipe.data.max_length,
    stride: recipe.data.stride,
    signal,
  };
  const withHits = (metric: Metric, hits: readonly boolean[] | undefined): Measurement => ({
    metric,
    ...(hits && { hits: hits.map(Number).join(''), rows: digestOf(evalRows!) }),
  });
  if (labels) {
    const { accuracy, hits } = await model.classify(evalRows!, { ...options, labels });
    if (!accuracy) throw new GraftError('usage', 'data.eval has rows without an answer', { place: 'data.eval' });
    return withHits(accuracy, hits);
  }
  const { metrics, hits } = await model.evaluate(evalRows!, options);
  const [first] = metrics;
  const metric = metricName === undefined ? first : metrics.find(({ name }) => name === metricName);
  if (metric) return withHits(metric, metric === first ? hits : undefined);
  const names = metrics.map(({ name }) => name);
  throw noMetric(metricName, names);
}

/** Returns a moving average of the losses: at each step, the mean over a window of the steps up to it, a fifteenth of the run. */
export function smoothed(losses: readonly number[]): number[] {
  const span = Math.max(1, Math.round(losses.length / 15));
  return losses.map((_, i) => {
    const recent = losses.slice(Math.max(0, i + 1 - span), i + 1);
    return recent.reduce((a, b) => a + b, 0) / recent.length;
  });
}

/** Returns the first step at which the smoothed loss is at most `loss`; undefined if it never is. */
export function stepsTo(losses: readonly number[], loss: number): number | undefined {
  const index = smoothed(losses).findIndex((x) => x <= loss);
  return index < 0 ? undefined : index + 1;
}
