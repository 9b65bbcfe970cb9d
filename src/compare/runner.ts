/** Runs a comparison: every method in a process of its own, one after the other, so that time and memory are its alone. */
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { GraftError, packageRoot } from '../base/index.ts';
import { processor } from '../engine/index.ts';
import { writtenBy } from '../methods/index.ts';
import { Session } from '../session/index.ts';
import type { Metric } from '../tasks/index.ts';
import type { Recipe, TrainEvent, TrainResult } from '../train/index.ts';
import type { Comparison } from './comparison.ts';

/** What is known of one method after its run. */
export interface Outcome {
  readonly name: string;
  readonly method: string;
  readonly lr: number;
  readonly metric: Metric;
  readonly trainable: number;
  readonly parameters: number;
  readonly losses: readonly number[];
  readonly tokensPerSecond: number;
  readonly peakMb: number;
  /** Of what has to be kept for the task, in bytes. */
  readonly size: number;
  readonly seconds: number;
  /** Where speed and time were measured: processor, threads, precision. A comparison may go on elsewhere. */
  readonly machine: string;
}

/** A method that came to no result, and why. */
export interface Failure {
  readonly name: string;
  readonly reason: string;
}

export interface Results {
  readonly title: string;
  readonly date: string;
  readonly before: Metric | undefined;
  readonly outcomes: readonly Outcome[];
  readonly failed: readonly Failure[];
  /** The loss whose steps are counted. */
  readonly loss: number;
}

type Json = Record<string, unknown>;

/** Trains through the command line; its last line of output is the result, those before it are told to `line`. */
function graft(args: readonly string[], line: (event: Json) => void = () => {}): Promise<Json> {
  const child = spawn(process.execPath, [join(packageRoot, 'bin', 'graft.js'), ...args, '--json'], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let last: Json = {};
  let said = '';
  createInterface(child.stdout).on('line', (text) => {
    last = JSON.parse(text) as Json;
    line(last);
  });
  child.stderr.on('data', (data: Buffer) => {
    said = (said + data.toString()).slice(-2000);
  });
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => {
      const [reason = ''] = said.trim().split('\n').slice(-1);
      if (code === 0) resolve(last);
      else reject(new GraftError('environment', reason.replace(/^graft: /, '') || `code ${code}`));
    });
  });
}

function sizeOf(dir: string): number {
  return readdirSync(dir, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith('.safetensors') && entry.name !== 'training.safetensors')
    .reduce((sum, entry) => sum + statSync(join(entry.parentPath, entry.name)).size, 0);
}

/** What the file keeps, as long as it was made for the same `key`. */
function kept<T>(file: string, key: unknown): T | undefined {
  if (!existsSync(file)) return undefined;
  const stored = JSON.parse(readFileSync(file, 'utf8')) as { key: string; value: T };
  return stored.key === JSON.stringify(key) ? stored.value : undefined;
}

function keep<T>(file: string, key: unknown, value: T): T {
  writeFileSync(file, JSON.stringify({ key: JSON.stringify(key), value }));
  return value;
}

/**
 * Trains and measures every method that has no outcome in the directory yet, so that a comparison that was stopped goes on.
 * @param tell a line about what happens
 */
export async function runComparison(comparison: Comparison, tell: (line: string) => void): Promise<Results> {
  const { answers, contenders, dir } = comparison;
  mkdirSync(dir, { recursive: true });
  const outcomes: Outcome[] = [];
  const failed: Failure[] = [];
  const speaking = [...contenders.values()].find(writes);
  let before: Metric | undefined;
  if (answers && speaking) {
    const file = join(dir, 'before.json');
    const { model, quantize, data } = speaking;
    const key = { model, quantize, data, answers };
    before = kept<Metric>(file, key) ?? keep(file, key, await measure(speaking, comparison));
    tell(`before: ${shown(before)}`);
  }
  for (const [name, recipe] of contenders) {
    const file = join(dir, name, 'outcome.json');
    const key = { recipe, answers, metric: comparison.metric };
    const known = kept<Outcome>(file, key);
    if (known) {
      outcomes.push(known);
      tell(`${name}: ${shown(known.metric)} (from before)`);
      continue;
    }
    let outcome: Outcome;
    try {
      const { made, ...costs } = await learn(name, recipe, dir, tell);
      outcome = keep(file, key, { ...costs, metric: await measure(recipe, comparison, made) });
    } catch (error) {
      // What is asked for is not to be had of any method.
      if (error instanceof GraftError && error.kind === 'usage') throw error;
      // One method that cannot be had here, or that diverges, does not take the evening's others with it.
      const reason = (error as Error).message;
      failed.push({ name, reason });
      tell(`${name}: failed: ${reason}`);
      continue;
    }
    outcomes.push(outcome);
    const { metric, tokensPerSecond, peakMb } = outcome;
    tell(`${name}: ${shown(metric)}, ${tokensPerSecond.toFixed(0)} tokens/s, ${peakMb.toFixed(0)} MB`);
  }
  if (outcomes.length === 0) throw new GraftError('usage', 'no method came to a result', { place: dir });
  const reached = outcomes.map(({ losses }) => Math.min(...smoothed(losses))).sort((a, b) => a - b);
  return {
    title: comparison.title,
    date: new Date().toISOString().slice(0, 10),
    before,
    outcomes,
    failed,
    loss: comparison.loss ?? reached[reached.length >> 1]!,
  };
}

const shown = ({ name, value, low, high, count, of }: Metric) =>
  `${name} ${value.toFixed(4)} (95 % interval ${low.toFixed(4)} to ${high.toFixed(4)}, ${count} ${of})`;

/** A method's run before it is measured, and where what it made is. */
type Learned = Omit<Outcome, 'metric'> & { readonly made: string };

async function learn(name: string, recipe: Recipe, dir: string, tell: (line: string) => void): Promise<Learned> {
  const file = join(dir, `${name}.json`);
  // What all are measured on decides nothing while they learn. JSON is YAML.
  writeFileSync(file, JSON.stringify({ ...recipe, data: { ...recipe.data, eval: undefined } }));
  let start: Extract<TrainEvent, { type: 'start' }> | undefined;
  const result = (await graft(['train', file, '--fresh'], (event) => {
    const told = event as TrainEvent;
    if (told.type === 'start') start = told;
    if (told.type === 'step' && told.step % 25 === 0) tell(`${name}: step ${told.step}, loss ${told.loss.toFixed(4)}`);
    if (told.type === 'warning') tell(`${name}: ${told.message}`);
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
    tokensPerSecond: result.tokens_per_s,
    peakMb: result.peak_rss_mb,
    size: sizeOf(result.adapter),
    seconds: result.seconds,
    machine: `${processor().model}, ${start!.threads} threads, ${start!.precision}`,
    made: result.adapter,
  };
}

/** The method writes answers, rather than say them with a head. */
const writes = ({ task = 'causal-lm' }: Recipe) => task === 'causal-lm';

/** The metric that counts, of the base or of what a method made. */
async function measure(recipe: Recipe, { answers, metric }: Comparison, made?: string) {
  const chosen = writes(recipe) ? answers : undefined;
  const whole = made !== undefined && writtenBy([recipe.method].flat()) === 'model';
  const { format } = recipe.data;
  // A session of its own: the next method trains with all of the memory.
  await using session = new Session();
  const rows = {
    model: whole ? made : recipe.model,
    ...(made && !whole && { adapter: made }),
    data: recipe.data.eval!,
    ...(format !== 'auto' && format !== 'batches' && { format }),
    trainOn: recipe.data.train_on,
    maxLength: recipe.data.max_length,
    stride: recipe.data.stride,
    quantize: whole ? 'none' : recipe.quantize,
  };
  if (chosen) return await session.run('choose', { ...rows, labels: chosen });
  const { metrics } = await session.run('evaluate', rows);
  const wanted = metric ?? metrics[0]?.name;
  const found = metrics.find(({ name }) => name === wanted);
  if (!found) {
    const names = metrics.map(({ name }) => name).join(', ') || 'none: name the answers under compare.answers';
    throw new GraftError('usage', `the task has no metric '${wanted}'`, {
      place: 'compare.metric',
      hint: `It has ${names}`,
    });
  }
  return found;
}

/** Mean over the last steps before each: what a curve shows without its noise. */
export function smoothed(losses: readonly number[]): number[] {
  const span = Math.max(1, Math.round(losses.length / 15));
  return losses.map((_, i) => {
    const part = losses.slice(Math.max(0, i + 1 - span), i + 1);
    return part.reduce((a, b) => a + b, 0) / part.length;
  });
}

/** Steps until the smoothed loss is at `loss`; undefined: never. */
export function stepsTo(losses: readonly number[], loss: number): number | undefined {
  const at = smoothed(losses).findIndex((x) => x <= loss);
  return at < 0 ? undefined : at + 1;
}
