/** What decides the losses of a run. A run is resumed only where all of it is the same; nothing else stands in the way. */
import { createHash, type Hash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { nameOfSource, type Row } from '../data/index.ts';
import { digestOfPath, readJsonObject } from '../io/index.ts';
import { writtenBy } from '../methods/index.ts';
import { bestPrecision, type Precision } from '../nn/index.ts';
import { currentDevice, host } from '../tensor/index.ts';
import type { Plan } from './plan.ts';
import { type Recipe, recipesOf } from './recipe.ts';
import type { TaskRuns } from './task-runs.ts';

/** What a field's file, directory or rows hold. */
interface Content {
  /** The path, or that the rows were in memory: for messages only. */
  readonly source: string;
  readonly digest: string;
}

/** The settings of a run, and what it reads. */
export interface RunIdentity {
  /** The recipe's fields by dotted name (`train.lr`, `method.0.r`), without those that do not decide a loss. */
  readonly fields: Readonly<Record<string, unknown>>;
  /** By the field that names it: the model, adapters to begin from, and the rows as they are learned. */
  readonly contents: Readonly<Record<string, Content>>;
  /** Precision of matrix products with frozen weights, resolved. */
  readonly precision: Precision;
  /** The kind of device, whose last bits are its own; absent in records of runs before there was more than one. */
  readonly device?: string;
}

/** Fields whose value decides no loss: places, measuring, memory and threads. The run's end is compared by its learning rates. */
const undecisive =
  /^(run|eval|model|deepspeed|train\.(threads|device|zero|offload|micro_tokens|gradient_checkpointing|keep_activations|precision|steps|epochs))(\.|$)|(^|\.)data\.(train|eval)(\.|$)/;
/** Fields that name a directory or file to begin from: what it holds counts. */
const begins = /^adapter$|^method\.\d+\.(adapter|adapters\.\d+|prompt_tuning_init_state_dict_path)$/;
/** Fields that only decide the rows, which are compared themselves. */
const ofRows = /(^|\.)data\./;
/** Files of a model, besides its own config.json, that decide its losses; its tokenizer's decide the rows. */
const modelFiles = /(^|\/)(preprocessor_config|modules)\.json$|\/config\.json$|\.(safetensors|bin|pt|pth|gguf)$/;

/** Fields of a model's config.json that say where it comes from or how other programs run it. */
const ofOthers = ['_name_or_path', 'transformers_version', 'use_cache', 'torch_dtype', 'dtype'];

function digestOfModel(path: string): string {
  const digest = digestOfPath(path, (name) => modelFiles.test(name));
  const file = join(path, 'config.json');
  if (!existsSync(file)) return digest;
  const fields = Object.entries(readJsonObject(file)).filter(([name]) => !ofOthers.includes(name));
  const config = JSON.stringify(fields.sort(([a], [b]) => (a < b ? -1 : 1)));
  return createHash('sha256').update(`${digest} ${config}`).digest('hex').slice(0, 16);
}

function* flattened(value: unknown, name = ''): Generator<[name: string, value: unknown]> {
  const isGroup = typeof value === 'object' && value !== null;
  if (!isGroup || (Array.isArray(value) && !value.some((item) => typeof item === 'object')) || begins.test(name)) {
    if (value !== undefined) yield [name, value];
    return;
  }
  for (const [key, item] of Object.entries(value)) yield* flattened(item, name ? `${name}.${key}` : key);
}

/**
 * The identity of a run of this recipe as far as it is known before the model is loaded: without its rows.
 * @param begun that of the run to resume: where the recipe leaves the precision open, it stays
 */
export function identityOf(recipe: Recipe, modelPath: string, begun?: RunIdentity): RunIdentity {
  const { tasks, data, ...rest } = recipe;
  const choices = [recipe.method].flat();
  const normal = { ...rest, method: choices, ...(tasks ? { tasks } : { data }) };
  const fields: Record<string, unknown> = {};
  const contents: Record<string, Content> = {
    model: { source: recipe.model, digest: digestOfModel(modelPath) },
  };
  for (const [name, value] of flattened(normal)) {
    const paths = Array.isArray(value) ? value : [value];
    if (begins.test(name) || /^method\.\d+\.adapters$/.test(name))
      for (const [i, path] of paths.entries())
        contents[paths.length > 1 ? `${name}.${i}` : name] = { source: path, digest: digestOfPath(path) };
    else if (!undecisive.test(name)) fields[name] = value;
  }
  const { precision } = recipe.train;
  const [device] = currentDevice().split(':') as [string];
  const best = () => begun?.precision ?? bestPrecision(writtenBy(choices) === 'model');
  return { fields, contents, precision: precision === 'auto' ? best() : precision, device };
}

/** Returns a digest of rows as a model sees them: their tokens, labels and images, in order. */
export function digestOfRows(rows: readonly Row[]): string {
  const hash = createHash('sha256');
  for (const row of rows) updateWithRow(hash, row);
  return hash.digest('hex').slice(0, 16);
}

/** Returns a digest of the rows to learn from, and of how they are divided into steps where the data says so. */
function digestOfPlan({ trainRows, stepsPerEpoch, rowsOf }: Plan): string {
  const counts = Array.from({ length: stepsPerEpoch }, (_, step) => rowsOf(step).length);
  return createHash('sha256')
    .update(`${digestOfRows(trainRows)} ${counts.join()}`)
    .digest('hex')
    .slice(0, 16);
}

function updateWithRow(hash: Hash, { ids, labels, types, target, pixels, pair, task, example }: Row): void {
  hash.update(`${ids.length} ${labels.length} ${types?.length} ${target?.join()} ${task}\n`);
  for (const numbers of [ids, labels, types]) if (numbers) hash.update(numbers);
  const image = example?.kind === 'image' ? example.image : undefined;
  if (pixels) hash.update(typeof image === 'string' ? digestOfPath(image) : pixels());
  if (pair) updateWithRow(hash, pair);
}

/** The identity with the rows that a run learns from. */
export function withRows(identity: RunIdentity, recipe: Recipe, { list }: TaskRuns): RunIdentity {
  const rows = recipesOf(recipe).map(([name, { data }], i): [string, Content] => [
    name === undefined ? 'data.train' : `tasks.${name}.data.train`,
    { source: nameOfSource(data.train, 'rows in memory'), digest: digestOfPlan(list[i]!.plan) },
  ]);
  return { ...identity, contents: { ...identity.contents, ...Object.fromEntries(rows) } };
}

const shown = (value: unknown) => (value === undefined ? 'not given' : JSON.stringify(value));

/**
 * What differs between the identity that a run began with and that of a recipe, in a phrase each: `train.lr was 0.0002 and is
 * 0.0001`. Contents that the second does not have yet are not compared.
 */
export function differences(before: RunIdentity, now: RunIdentity): string[] {
  const names = [...new Set([...Object.keys(before.fields), ...Object.keys(now.fields)])];
  const oneMethod = !names.some((name) => name.startsWith('method.1.'));
  const changed = (pattern: (name: string) => boolean) =>
    names
      .filter((name) => pattern(name) && shown(before.fields[name]) !== shown(now.fields[name]))
      .map(
        (name) =>
          `${oneMethod ? name.replace('method.0.', 'method.') : name} was ${shown(before.fields[name])} and is ${shown(now.fields[name])}`,
      );
  const found = changed((name) => !ofRows.test(name));
  if ((before.device ?? host) !== now.device)
    found.push(`train.device was ${before.device ?? host} and is ${now.device}`);
  if (before.precision !== now.precision) found.push(`train.precision was ${before.precision} and is ${now.precision}`);
  const rowFields = changed((name) => ofRows.test(name));
  for (const name of new Set([...Object.keys(before.contents), ...Object.keys(now.contents)])) {
    const [old, current] = [before.contents[name], now.contents[name]];
    const isRows = name.endsWith('data.train');
    if (old?.digest === current?.digest || (isRows && !current)) continue;
    if (isRows && rowFields.length > 0) found.push(...rowFields);
    else if (!old || !current) found.push(`${name} was ${shown(old?.source)} and is ${shown(current?.source)}`);
    else if (old.source !== current.source)
      found.push(`${name} was ${old.source} and is ${current.source}, which holds something else`);
    else found.push(`${isRows ? `the rows of ${name}` : name} (${current.source}) changed`);
  }
  return found;
}
