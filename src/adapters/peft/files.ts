/**
 * Adapters on disk in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`
 * (peft/peft_model.py save_pretrained, peft/utils/save_and_load.py).
 */
import { existsSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import type { z } from 'zod';
import { GraftError, parseWith } from '../../base/index.ts';
import {
  openSafetensors,
  openTorch,
  readJsonObject,
  type WeightEntry,
  type WeightSource,
  writeSafetensors,
} from '../../io/index.ts';
import { type Adapter, type Method, methods } from '../../methods/index.ts';
import { type Model, moduleAt, type TaskName } from '../../nn/index.ts';
import { type DType, noGrad, ops, scope, Tensor } from '../../tensor/index.ts';

const prefix = 'base_model.model.';

/** Parameters of methods whose PEFT file holds only what they make: training goes on from here. */
const sideFile = 'training.safetensors';

/** Fields that PEFT writes and that carry no choice of ours. */
const inert = new Set([
  'peft_type',
  'task_type',
  'base_model_name_or_path',
  'revision',
  'inference_mode',
  'auto_mapping',
  'peft_version',
  'megatron_core',
  'qalora_group_size',
  'eva_config',
  // Of prompt methods: they follow from the model, or made the first values.
  'token_dim',
  'num_layers',
  'num_attention_heads',
  'num_transformer_submodules',
  'tokenizer_kwargs',
]);

/** Whether a field says nothing: what PEFT writes when a feature is not used. */
const unused = (value: unknown) =>
  value === null || value === false || (typeof value === 'object' && Object.keys(value as object).length === 0);

/** The method of an adapter directory and its config, under Graft's schema. */
export function readPeftConfig(dir: string): { method: Method<unknown>; config: unknown; base: string | undefined } {
  const place = join(dir, 'adapter_config.json');
  if (!existsSync(place)) {
    throw new GraftError('input', 'this is no adapter: it has no adapter_config.json', { place: dir });
  }
  const raw = readJsonObject(place);
  if (typeof raw.peft_type !== 'string') {
    const other =
      typeof raw.version === 'string' && raw.version.startsWith('adapters.')
        ? "AdapterHub's"
        : 'fine_tune_type' in raw
          ? "mlx-lm's"
          : 'an unknown';
    throw new GraftError('input', `this is ${other} format, not PEFT's: peft_type is missing`, {
      place,
      ...(other !== 'an unknown' && { hint: 'Try graft convert --to peft' }),
    });
  }
  const method = Object.values(methods).find((m) => 'peftType' in m && m.peftType === raw.peft_type);
  if (!method) {
    throw new GraftError('input', `adapters of the type ${raw.peft_type} cannot be read yet`, {
      place,
      hint: `Graft reads ${Object.values(methods)
        .flatMap((m) => ('peftType' in m ? [m.peftType] : []))
        .join(', ')}`,
    });
  }
  const known = Object.keys((method.config as unknown as z.ZodObject).shape);
  // The head is trained with every method and needs no mention.
  if (Array.isArray(raw.modules_to_save)) {
    raw.modules_to_save = raw.modules_to_save.filter((name) => !headNames.includes(name));
    if ((raw.modules_to_save as unknown[]).length === 0) raw.modules_to_save = null;
  }
  const chosen = Object.entries(raw).filter(([key, value]) => !inert.has(key) && value !== null);
  const foreign = chosen.filter(([key, value]) => !known.includes(key) && !unused(value)).map(([key]) => key);
  if (foreign.length > 0) {
    throw new GraftError('input', `it uses ${foreign.join(', ')}, which Graft does not have`, { place });
  }
  const fields = Object.fromEntries(chosen.filter(([key]) => known.includes(key)));
  // These starts leave the base as it is: what was trained from them is LoRA like any other.
  if (fields.init_lora_weights === 'eva' || fields.init_lora_weights === 'orthogonal') fields.init_lora_weights = true;
  const config = parseWith(method.config, fields, place, 'input');
  const base = typeof raw.base_model_name_or_path === 'string' ? raw.base_model_name_or_path : undefined;
  return { method: method as Method<unknown>, config, base };
}

/**
 * For those who read A and B without the base. @throws GraftError 'usage' for LoRA that began by changing the base: its A and B
 * count on what was left of it
 */
export function requireOwnBase(config: unknown, dir: string): void {
  const { init_lora_weights: start } = config as { init_lora_weights?: unknown };
  if (typeof start !== 'string' || start === 'gaussian') return;
  throw new GraftError(
    'usage',
    `it began with init_lora_weights: ${start}, so its A and B are not for the base as it is`,
    {
      place: dir,
      hint: 'Save it in PEFT with path_initial_model_for_weight_conversion, which makes plain LoRA of it',
    },
  );
}

/** Names that PEFT gives its task heads; it trains them with every method (peft_model.py, classifier_module_names). */
const headNames = ['classifier', 'score', 'qa_outputs'] as const;
const headKey = new RegExp(`^base_model\\.(model\\.)?(${headNames.join('|')})\\.`);

const taskTypes: Partial<Record<TaskName, string>> = {
  'causal-lm': 'CAUSAL_LM',
  'sequence-classification': 'SEQ_CLS',
  'token-classification': 'TOKEN_CLS',
  'question-answering': 'QUESTION_ANS',
  embedding: 'FEATURE_EXTRACTION',
};

/** The task that PEFT's config names, if it names one. */
export function taskNameOf(dir: string): TaskName | undefined {
  const said = readJsonObject(join(dir, 'adapter_config.json')).task_type;
  return (Object.keys(taskTypes) as TaskName[]).find((name) => taskTypes[name] === said);
}

/** Number of labels of the head that the file holds, or undefined. */
export function headSizeOf(dir: string): number | undefined {
  using source = openWeights(dir);
  const sizes = [...source.entries.values()]
    .filter(({ name }) => headKey.test(name) && name.endsWith('.weight'))
    .map(({ shape }) => shape[0]!);
  return sizes.at(-1);
}

function openWeights(dir: string): WeightSource {
  const file = join(dir, 'adapter_model.safetensors');
  if (existsSync(file)) return openSafetensors(file);
  const pickle = join(dir, 'adapter_model.bin');
  if (existsSync(pickle)) return openTorch(pickle);
  throw new GraftError('input', 'the adapter has no adapter_model.safetensors', {
    place: dir,
    hint: 'Save it with safe_serialization, which is the default of PEFT',
  });
}

/** Under `bias: all` PEFT writes the biases of both copies of a module that it saves whole, beside the one that counts. */
const idleBias = /\.(original_module|modules_to_save)\.(.*\.)?bias$/;

/** Every tensor of the file. */
export function storedByPeft(dir: string): WeightEntry[] {
  using source = openWeights(dir);
  return [...source.entries.values()];
}

/** Each tensor of the file by the name that it has there. */
function fileNames(adapter: Adapter, head: ReadonlyMap<string, Tensor> = new Map()): Map<string, Tensor> {
  const named = new Map<string, Tensor>();
  for (const [key, tensor] of adapter.parameters) named.set(adapter.fileKey?.(key) ?? prefix + key, tensor);
  // PEFT's prompt methods hold the model itself and not a wrapper of it: one `model.` less.
  const before = adapter.fileKey || adapter.derived ? 'base_model.' : prefix;
  for (const [key, tensor] of head) named.set(before + key, tensor);
  return named;
}

/**
 * Fills an adapter, and the head with it, from its directory.
 * @param head undefined: the model keeps its own, whatever the file holds
 * @throws GraftError 'input' for a broken file, 'mismatch' listing every tensor that does not fit
 */
export function fillPeft(dir: string, adapter: Adapter, head: ReadonlyMap<string, Tensor> | undefined): void {
  const { derived } = adapter;
  using source = openWeights(dir);
  const beside = join(dir, sideFile);
  const doubles = new Set(scopedKeys(adapter).map((key) => prefix + key));
  const leftOut = (name: string) => doubles.has(name) || idleBias.test(name) || (!head && headKey.test(name));
  if (derived && existsSync(beside)) {
    using own = openSafetensors(beside);
    fill(own, adapter.parameters, dir);
    const rest = fileNames({ ...adapter, parameters: new Map() }, head);
    fill(source, rest, dir, (name) => name === derived.name || leftOut(name));
    return;
  }
  derived?.adopt();
  fill(source, fileNames(adapter, head), dir, leftOut);
}

/** Keys that the file has and the parameters have not: a table's other end. */
function scopedKeys(adapter: Adapter): string[] {
  using _ = scope();
  return [...(adapter.savedTensors?.().keys() ?? [])].filter((key) => !adapter.parameters.has(key));
}

function read(source: WeightSource, name: string): Tensor {
  const entry = source.entries.get(name)!;
  const stored = Tensor.empty(entry.shape, entry.format as DType);
  source.read(name, stored.memory());
  return stored;
}

/** Gives tensors what a file holds under their names. @throws GraftError 'mismatch' listing every one that does not fit */
export function fill(
  source: WeightSource,
  tensors: ReadonlyMap<string, Tensor>,
  place: string,
  leftOut: (name: string) => boolean = () => false,
): void {
  const short = (name: string) => (name.startsWith(prefix) ? name.slice(prefix.length) : name);
  const problems: string[] = [];
  for (const [name, parameter] of tensors) {
    const entry = source.entries.get(name);
    if (!entry) problems.push(`${short(name)} [${parameter.shape.join(', ')}] is missing`);
    else if (entry.shape.join() !== parameter.shape.join()) {
      const asked = `the base asks for [${parameter.shape.join(', ')}]`;
      problems.push(`${short(name)} is [${entry.shape.join(', ')}], ${asked}`);
    }
  }
  for (const name of source.entries.keys()) {
    // PEFT stores a copy of a targeted table; ours is the base's own.
    if (!tensors.has(name) && !name.endsWith('.base_layer.weight') && !leftOut(name))
      problems.push(`${name} has no place in it`);
  }
  if (problems.length > 0) {
    const more = problems.length > 16 ? `; and ${problems.length - 16} more` : '';
    throw new GraftError('mismatch', `the adapter does not fit this base: ${problems.slice(0, 16).join('; ')}${more}`, {
      place,
      data: { problems },
    });
  }
  noGrad(() => {
    for (const [name, parameter] of tensors) {
      using _ = scope();
      ops.copy_(parameter, read(source, name));
    }
  });
}

/** What is written beside the parameters. */
export interface SaveOptions {
  /** Path or id of the base, for whoever loads the adapter. */
  readonly base: string;
  /** The model that the adapter is on, where it is saved for another of the same body. */
  readonly host?: Model;
  /** Of rows that do not say which of several tasks they are of. */
  readonly taskNumber?: number;
}

/** Writes one method's adapter, and the head with it, into the empty directory `work`. */
export function writePeft(
  model: Model,
  adapter: Adapter,
  head: ReadonlyMap<string, Tensor>,
  work: string,
  { base }: SaveOptions,
): void {
  const method = methods[adapter.method as keyof typeof methods] as Method<unknown>;
  if (!method.peftType) {
    throw new GraftError('usage', `PEFT has no format for the method '${adapter.method}'`, {
      hint: 'Save the whole model instead',
    });
  }
  const config = {
    ...adapter.config,
    peft_type: method.peftType,
    task_type: taskTypes[model.task.name] ?? null,
    base_model_name_or_path: base,
    inference_mode: true,
    revision: null,
    auto_mapping: null,
    ...adapter.savedConfig?.(base),
  };
  const sorted = Object.fromEntries(Object.entries(config).sort(([a], [b]) => (a < b ? -1 : 1)));
  writeFileSync(join(work, 'adapter_config.json'), `${JSON.stringify(sorted, null, 2)}\n`);
  using _ = scope();
  writeSafetensors(join(work, 'adapter_model.safetensors'), tensors(model, adapter, head), { format: 'pt' });
  if (adapter.derived) writeSafetensors(join(work, sideFile), [...adapter.parameters].map(entryOf));
  writeFileSync(join(work, 'README.md'), card(adapter, base));
}

export const entryOf = ([name, tensor]: readonly [string, Tensor]) => ({
  name,
  dtype: tensor.dtype,
  shape: tensor.shape,
  bytes: () => tensor.bytes(),
});

/** Whether PEFT saves the own tables of embeddings and head beside their update: where the targets call one of them by name. */
function tablesSaved({
  target_modules: targets,
  trainable_token_indices: rows,
}: Readonly<Record<string, unknown>>): boolean {
  if (rows) return false;
  return Array.isArray(targets) ? targets.includes('embed_tokens') || targets.includes('lm_head') : true;
}

function* tensors(model: Model, adapter: Adapter, head: ReadonlyMap<string, Tensor>) {
  const { derived } = adapter;
  const tables = tablesSaved({ ...adapter.config, ...adapter.savedConfig?.() });
  if (derived) yield entryOf([derived.name, noGrad(() => derived.value())]);
  const parameters = derived ? new Map() : (noGrad(() => adapter.savedTensors?.()) ?? adapter.parameters);
  const named = fileNames({ ...adapter, parameters }, head);
  for (const [name, tensor] of named) {
    yield entryOf([name, tensor]);
    // PEFT saves a targeted embedding's or head's own table too (save_embedding_layers="auto").
    const path = /^base_model\.model\.(.*)\.lora_(embedding_A|A\.weight)$/.exec(name)?.[1];
    if (path && tables && (path === model.sites.embeddings || path === model.sites.head)) {
      const table = (moduleAt(model.root, path) as unknown as { denseWeight(): Tensor }).denseWeight();
      yield entryOf([`${prefix}${path}.base_layer.weight`, table]);
    }
  }
}

const card = (adapter: Adapter, base: string) => `---
base_model: ${base}
library_name: peft
---
# ${adapter.method} adapter for ${basename(base)}

Trained with Graft. Load it with Graft (\`graft generate --adapter\`) or with PEFT (\`PeftModel.from_pretrained\`).
`;
