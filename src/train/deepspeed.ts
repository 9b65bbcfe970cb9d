/**
 * The field `deepspeed` of a recipe: a DeepSpeed configuration, whose keys become fields of `train`. What it leaves out or sets to
 * "auto" follows from the recipe. Names and meanings of the keys: https://www.deepspeed.ai/docs/config-json/, and
 * deepspeed/runtime/{config,lr_schedules}.py.
 */
import { isAbsolute, resolve } from 'node:path';
import { z } from 'zod';
import { GraftError } from '../base/index.ts';
import { readJsonObject } from '../io/index.ts';
import { optimizerSettings } from '../optim/index.ts';
import { stages } from './cluster-plan.ts';
import { isObject } from './recipe-train.ts';

type Fields = Record<string, unknown>;

/** The part of a recipe that is read here. */
interface Configured {
  readonly deepspeed?: string | Fields | undefined;
  readonly train: { readonly batch_size: number };
}

export const deepspeedField = z
  .union([z.string(), z.record(z.string(), z.unknown())])
  .optional()
  .describe(
    'A DeepSpeed configuration: a JSON file, or its content. Honoured are the batch sizes, gradient_clipping, optimizer, scheduler, bf16, and of zero_optimization the stage, offload_param and offload_optimizer (nvme is train.offload); other keys are named in a warning, or refused where the run would be another. What it leaves out or sets to "auto" follows from the other fields of the recipe, which it must not contradict.',
  );

/** A field of the recipe that a key of the configuration decides. */
interface Setting {
  readonly field: string;
  readonly value: unknown;
  readonly key: string;
  /** A field of the recipe that says something else about the same, so that both together are refused. */
  readonly instead?: string;
}

/** The optimizers of DeepSpeed that Graft has. Its Adam decays weights as AdamW does, unless adam_w_mode is false. */
const optimizerNames: Readonly<Record<string, string>> = { adam: 'adamw', adamw: 'adamw', lion: 'lion', sgd: 'sgd' };

/** Settings of an optimizer that change what it computes, and the only value that Graft computes with. */
const onlyValues: Readonly<Record<string, boolean | number>> = {
  adam_w_mode: true,
  amsgrad: false,
  bias_correction: true,
  dampening: 0,
  maximize: false,
};

const schedules: Readonly<Record<string, string>> = {
  WarmupLR: 'constant',
  WarmupDecayLR: 'linear',
  WarmupCosineLR: 'cosine',
};

/** The keys of a configuration, and which of them have been read. */
class Keys {
  readonly #read = new Set<string>();
  readonly #config: Fields;
  readonly #place: string;

  constructor(config: Fields, place: string) {
    this.#config = config;
    this.#place = place;
  }

  /** The value at a dotted key; undefined where there is none, or it is "auto". */
  at(key: string): unknown {
    this.#read.add(key);
    const value = key
      .split('.')
      .reduce<unknown>((part, name) => (isObject(part) ? part[name] : undefined), this.#config);
    return value === 'auto' || value === null ? undefined : value;
  }

  /** @throws GraftError 'usage' where the value is no number of at least `minimum` */
  number(key: string, minimum = 0): number | undefined {
    const value = this.at(key);
    if (value === undefined || (typeof value === 'number' && value >= minimum)) return value;
    throw this.refusal(key, `must be a number of ${minimum} or more, or "auto", but is ${JSON.stringify(value)}`);
  }

  /** A section with named fields. @throws GraftError 'usage' where it is something else */
  section(key: string): Fields | undefined {
    const value = this.at(key);
    if (value === undefined || isObject(value)) return value;
    throw this.refusal(key, `must be an object, but is ${JSON.stringify(value)}`);
  }

  refusal(key: string, problem: string, hint?: string): GraftError {
    return new GraftError('usage', `${key} ${problem}`, { place: this.#place, hint });
  }

  /** The keys with a value that were not read; sections that are switched off demand nothing. */
  unread(value: unknown = this.#config, key = ''): string[] {
    if (isObject(value) && value.enabled === false) return [];
    if (isObject(value) && Object.keys(value).length > 0)
      return Object.entries(value).flatMap(([name, part]) => this.unread(part, key ? `${key}.${name}` : name));
    return value === 'auto' || this.#read.has(key) ? [] : [key];
  }
}

/** What a configuration decides, and what should be known about the rest. */
function translated(config: Fields, place: string): { settings: Setting[]; notes: string[] } {
  const keys = new Keys(config, place);
  const notes: string[] = [];
  const settings = [
    ...batchSettings(keys, notes),
    ...stageSettings(keys, notes),
    ...precisionSettings(keys),
    ...optimizerSettingsOf(keys),
    ...scheduleSettings(keys, notes),
  ];
  const unread = keys.unread();
  if (unread.length > 0) notes.push(`deepspeed: not used, since Graft has nothing like it: ${unread.join(', ')}`);
  return { settings, notes };
}

function batchSettings(keys: Keys, notes: string[]): Setting[] {
  const clipping = keys.number('gradient_clipping');
  const batch = keys.number('train_batch_size', 1);
  const micro = keys.number('train_micro_batch_size_per_gpu', 1);
  keys.number('gradient_accumulation_steps', 1);
  if (micro !== undefined)
    notes.push(
      'deepspeed: train_micro_batch_size_per_gpu counts for the rows of a step only; what is in memory at one time is limited by train.micro_tokens',
    );
  return [
    ...(batch === undefined ? [] : [{ field: 'batch_size', value: batch, key: 'train_batch_size' }]),
    // 0 is DeepSpeed's way to say that nothing is clipped.
    ...(clipping === undefined
      ? []
      : [{ field: 'max_grad_norm', value: clipping || undefined, key: 'gradient_clipping' }]),
  ];
}

function stageSettings(keys: Keys, notes: string[]): Setting[] {
  keys.section('zero_optimization');
  const key = 'zero_optimization.stage';
  const stage = keys.number(key);
  const found = offloadSettings(keys, notes);
  if (stage === undefined) return found;
  if (!stages.some((each) => each === stage))
    throw keys.refusal(key, `must be 0, 1, 2 or 3, but is ${stage}`, 'Set it to one of these');
  return [{ field: 'zero.stage', value: stage, key }, ...found];
}

/** What is elsewhere than in a GPU's memory. The processor's memory, where DeepSpeed's `cpu` has it, is where everything is here. */
function offloadSettings(keys: Keys, notes: string[]): Setting[] {
  const parts = { offload_param: 'weights', offload_optimizer: 'optimizer' } as const;
  const found: Setting[] = [];
  const inMemory: string[] = [];
  let dir: Setting | undefined;
  for (const [name, part] of Object.entries(parts)) {
    const section = `zero_optimization.${name}`;
    keys.section(section);
    const [device, path] = [keys.at(`${section}.device`), keys.at(`${section}.nvme_path`)];
    if (device !== undefined && !['none', 'cpu', 'nvme'].includes(String(device)))
      throw keys.refusal(`${section}.device`, `must be "none", "cpu" or "nvme", but is ${JSON.stringify(device)}`);
    if (device === 'cpu') inMemory.push(section);
    if (device !== 'nvme') continue;
    found.push({ field: `offload.${part}`, value: true, key: `${section}.device` });
    if (path === undefined) continue;
    if (typeof path !== 'string' || !isAbsolute(path))
      throw keys.refusal(`${section}.nvme_path`, `must be an absolute path, but is ${JSON.stringify(path)}`);
    if (dir && dir.value !== path)
      throw keys.refusal(`${section}.nvme_path`, `is ${path}, and ${dir.key} is ${dir.value}`, 'Give both the same directory');
    dir = { field: 'offload.dir', value: path, key: `${section}.nvme_path` };
  }
  for (const name of ['cpu_offload', 'cpu_offload_params', 'cpu_offload_param'])
    if (keys.at(`zero_optimization.${name}`) === true) inMemory.push(`zero_optimization.${name}`);
  if (inMemory.length > 0)
    notes.push(`deepspeed: ${inMemory.join(', ')}: what a run has is in the processor’s memory, or on its GPU where it has one`);
  return [...found, ...(dir ? [dir] : [])];
}

function precisionSettings(keys: Keys): Setting[] {
  keys.section('fp16');
  if (keys.at('fp16.enabled') === true)
    throw keys.refusal('fp16.enabled', 'is true, and Graft does not compute in float16', 'Use bf16 instead');
  const enabled = keys.at(keys.section('bf16') ? 'bf16.enabled' : 'bfloat16.enabled');
  if (enabled === undefined) return [];
  return [{ field: 'precision', value: enabled === true ? 'bfloat16' : 'float32', key: 'bf16.enabled' }];
}

function optimizerSettingsOf(keys: Keys): Setting[] {
  if (!keys.section('optimizer')) return [];
  const named = keys.at('optimizer.type');
  const type = optimizerNames[String(named).toLowerCase()];
  if (!type) {
    const problem = named === undefined ? 'is missing' : `${JSON.stringify(named)} is not available`;
    throw keys.refusal(
      'optimizer.type',
      problem,
      'Available are Adam, AdamW, Lion and SGD; train.optimizer has others',
    );
  }
  const found: Setting[] = [{ field: 'optimizer.type', value: type, key: 'optimizer.type' }];
  const known = optimizerSettings(type)!;
  for (const name of Object.keys(keys.section('optimizer.params') ?? {})) {
    const key = `optimizer.params.${name}`;
    if (name === 'betas') {
      // Left unread where the optimizer has none, and so named with the keys that do nothing.
      const betas = known.includes('beta1') ? (keys.at(key) as unknown[] | undefined) : undefined;
      if (betas === undefined) continue;
      if (!Array.isArray(betas) || betas.length !== 2) throw keys.refusal(key, 'must be a list of two numbers');
      for (const [i, value] of betas.entries()) found.push({ field: `optimizer.beta${i + 1}`, value, key });
    } else if (name === 'lr') {
      const value = keys.number(key);
      if (value !== undefined) found.push({ field: 'lr', value, key });
    } else if (name in onlyValues) {
      const value = keys.at(key);
      if (value !== undefined && value !== onlyValues[name])
        throw keys.refusal(key, `${JSON.stringify(value)} is not available`, `Graft computes with ${onlyValues[name]}`);
    } else if (known.includes(name)) {
      const value = keys.at(key);
      if (value !== undefined) found.push({ field: `optimizer.${name}`, value, key });
    }
  }
  return found;
}

function scheduleSettings(keys: Keys, notes: string[]): Setting[] {
  if (!keys.section('scheduler')) return [];
  const type = keys.at('scheduler.type');
  const schedule = schedules[String(type)];
  if (!schedule) {
    const problem = type === undefined ? 'is missing' : `${JSON.stringify(type)} is not available`;
    throw keys.refusal('scheduler.type', problem, `Available are ${Object.keys(schedules).join(', ')}`);
  }
  keys.section('scheduler.params');
  const of = (name: string) => ({ key: `scheduler.params.${name}`, value: keys.number(`scheduler.params.${name}`) });
  const lr = of('warmup_max_lr');
  const warmup = of('warmup_num_steps');
  const found: Setting[] = [{ field: 'schedule', value: schedule, key: 'scheduler.type' }];
  if (lr.value !== undefined) found.push({ field: 'lr', ...lr });
  if (warmup.value !== undefined) found.push({ field: 'warmup_steps', ...warmup, instead: 'warmup_ratio' });
  if (schedule !== 'constant') {
    const steps = of('total_num_steps');
    if (steps.value !== undefined) found.push({ field: 'steps', ...steps, instead: 'epochs' });
  }
  // DeepSpeed's defaults: warmup_type "log", cos_min_ratio 0.0001.
  const shape = keys.at('scheduler.params.warmup_type') ?? 'log';
  if (shape !== 'linear')
    notes.push(`deepspeed: the learning rate rises linearly, and not as scheduler.params.warmup_type ${shape} says`);
  const floors = schedule === 'cosine' ? ['warmup_min_ratio', 'cos_min_ratio'] : ['warmup_min_lr'];
  for (const { key, value } of floors.map(of)) {
    const floor = value ?? (key.endsWith('cos_min_ratio') ? 1e-4 : 0);
    if (floor > 0) notes.push(`deepspeed: the learning rate goes from and to 0, and not ${floor} (${key})`);
  }
  return found;
}

/** The value at a field of `train`; settings of the optimizer may stand in `train` itself. */
function valueAt(train: Fields, field: string): unknown {
  const [first, second] = field.split('.') as [string, string | undefined];
  if (second === undefined) return train[first];
  const section = train[first];
  return (isObject(section) ? section[second] : undefined) ?? (first === 'optimizer' ? train[second] : undefined);
}

/** Whether a recipe's own value leaves room for that of the configuration: `bf16` says nothing about how products are made in bfloat16. */
const agrees = (field: string, own: unknown, value: unknown): boolean =>
  own === value || (field === 'precision' && own === 'mixed' && value === 'bfloat16');

/**
 * Returns the recipe with what its DeepSpeed configuration says under `train`; `deepspeed` is then the content of the file.
 * @param base folder that the file's path starts from
 * @throws GraftError 'usage' for a key that cannot be honoured, or that contradicts a field of the recipe, with both places
 */
export function withDeepspeed(value: unknown, place: string, base: string): unknown {
  if (!isObject(value) || value.deepspeed === undefined) return value;
  const { deepspeed, train: own = {} } = value;
  if ((typeof deepspeed !== 'string' && !isObject(deepspeed)) || !isObject(own)) return value;
  const file = typeof deepspeed === 'string' ? resolve(base, deepspeed) : `${place}, deepspeed`;
  const config = typeof deepspeed === 'string' ? readJsonObject(file) : deepspeed;

  const train: Fields = { ...own };
  const decidedBy = new Map<string, string>();
  for (const { field, value, key, instead } of translated(config, file).settings) {
    const before = valueAt(train, field);
    const contradicts = (ownField: string, said: unknown): never => {
      const where = decidedBy.get(ownField) ?? `train.${ownField}`;
      throw new GraftError(
        'usage',
        `${where} is ${JSON.stringify(said)}, and ${key} in ${file} is ${JSON.stringify(value ?? 0)}`,
        {
          place: decidedBy.has(ownField) ? file : place,
          hint: 'Remove one of the two, or give both the same value',
        },
      );
    };
    // A recipe that was read before has its defaults filled in, besides what the configuration said.
    if (instead !== undefined && before === undefined && train[instead] !== undefined)
      contradicts(instead, train[instead]);
    const isOpen = before === undefined || (field === 'precision' && before === 'auto');
    if (!isOpen && !agrees(field, before, value)) contradicts(field, before);
    decidedBy.set(field, key);
    if (!isOpen || value === undefined) continue;
    const [first, second] = field.split('.') as [string, string | undefined];
    train[first] = second === undefined ? value : { ...(isObject(train[first]) ? train[first] : {}), [second]: value };
  }
  // A batch that only the recipe gives takes part in the arithmetic, which needs the number of processes.
  const batch = train.batch_size === undefined ? {} : { train_batch_size: train.batch_size };
  return { ...value, train, deepspeed: { ...config, ...batch } };
}

/** What should be known about a recipe's DeepSpeed configuration: the keys that do nothing, and what is done otherwise. */
export const deepspeedNotes = ({ deepspeed }: Configured): string[] =>
  isObject(deepspeed) ? translated(deepspeed, 'deepspeed').notes : [];

/**
 * Returns the recipe with the rows of a step as its DeepSpeed configuration gives them: train_batch_size, or the product of
 * train_micro_batch_size_per_gpu, gradient_accumulation_steps and the number of processes.
 * @throws GraftError 'usage' where they do not fit together
 */
export function withBatchOf<R extends Configured>(recipe: R, ranks: number): R {
  const { deepspeed, train } = recipe;
  if (!isObject(deepspeed)) return recipe;
  const keys = new Keys(deepspeed, 'deepspeed');
  const [batch, micro, accumulation] = [
    keys.number('train_batch_size', 1),
    keys.number('train_micro_batch_size_per_gpu', 1),
    keys.number('gradient_accumulation_steps', 1),
  ];
  if (micro === undefined && accumulation === undefined) return recipe;
  const share = (micro ?? 1) * (accumulation ?? 1) * ranks;
  if (batch === undefined && micro !== undefined) return { ...recipe, train: { ...train, batch_size: share } };
  const rows = batch ?? train.batch_size;
  const isWhole = micro !== undefined && accumulation !== undefined;
  if (isWhole ? rows === share : rows % share === 0) return recipe;
  const factors = [
    ...(micro === undefined ? [] : [`train_micro_batch_size_per_gpu ${micro}`]),
    ...(accumulation === undefined ? [] : [`gradient_accumulation_steps ${accumulation}`]),
    `${ranks} ${ranks === 1 ? 'process' : 'processes'}`,
  ];
  throw new GraftError(
    'usage',
    `the rows of a step (train_batch_size, or train.batch_size of the recipe) are ${rows}, which is ${isWhole ? 'not' : 'no multiple of'} ${factors.join(' × ')} = ${share}`,
    { place: 'deepspeed', hint: 'Set one of them to "auto", or leave it out' },
  );
}
