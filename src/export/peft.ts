/**
 * Adapters on disk in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`
 * (peft/peft_model.py save_pretrained, peft/utils/save_and_load.py).
 */
import { existsSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { z } from 'zod';
import { GraftError } from '../base/index.ts';
import { openSafetensors, readJsonObject, writeDirectory, writeSafetensors } from '../io/index.ts';
import { type Adapter, type Method, methods } from '../methods/index.ts';
import { type Model, moduleAt } from '../nn/index.ts';
import { type DType, noGrad, ops, scope, Tensor } from '../tensor/index.ts';

const prefix = 'base_model.model.';

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
]);

/** Whether a field says nothing: what PEFT writes when a feature is not used. */
const unused = (value: unknown) =>
  value === null || value === false || (typeof value === 'object' && Object.keys(value as object).length === 0);

/** The method of an adapter directory and its config, under Graft's schema. */
export function readAdapterConfig(dir: string): { method: Method<unknown>; config: unknown; base: string | undefined } {
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
    throw new GraftError('input', `this is ${other} format, not PEFT's: peft_type is missing`, { place });
  }
  const method = Object.values(methods).find((m) => 'peftType' in m && m.peftType === raw.peft_type);
  if (!method) {
    throw new GraftError('input', `adapters of the type ${raw.peft_type} cannot be read yet`, {
      place,
      mend: `Graft reads ${Object.values(methods)
        .flatMap((m) => ('peftType' in m ? [m.peftType] : []))
        .join(', ')}`,
    });
  }
  const known = Object.keys((method.config as unknown as z.ZodObject).shape);
  const chosen = Object.entries(raw).filter(([key, value]) => !inert.has(key) && value !== null);
  const foreign = chosen.filter(([key, value]) => !known.includes(key) && !unused(value)).map(([key]) => key);
  if (foreign.length > 0) {
    throw new GraftError('input', `it uses ${foreign.join(', ')}, which Graft does not have`, { place });
  }
  const parsed = method.config.safeParse(Object.fromEntries(chosen.filter(([key]) => known.includes(key))));
  if (!parsed.success) throw new GraftError('input', z.prettifyError(parsed.error).replaceAll('\n', ' '), { place });
  const base = typeof raw.base_model_name_or_path === 'string' ? raw.base_model_name_or_path : undefined;
  return { method: method as Method<unknown>, config: parsed.data, base };
}

/**
 * Puts a saved adapter on `model`.
 * @throws GraftError 'input' for a broken or foreign file, 'mismatch' listing every tensor that does not fit the model
 */
export function loadAdapter(model: Model, dir: string): Adapter {
  const { method, config } = readAdapterConfig(dir);
  const file = join(dir, 'adapter_model.safetensors');
  if (!existsSync(file)) {
    throw new GraftError('input', 'the adapter has no adapter_model.safetensors', {
      place: dir,
      mend: 'Save it with safe_serialization, which is the default of PEFT',
    });
  }
  using source = openSafetensors(file);
  let adapter: Adapter;
  try {
    adapter = method.attach(model, config, 0);
  } catch (cause) {
    if (!(cause instanceof GraftError)) throw cause;
    throw new GraftError('mismatch', `the adapter does not fit this base: ${cause.message}`, { place: dir, cause });
  }
  const problems: string[] = [];
  for (const [key, parameter] of adapter.parameters) {
    const entry = source.entries.get(prefix + key);
    if (!entry) problems.push(`${key} [${parameter.shape.join(', ')}] is missing`);
    else if (entry.shape.join() !== parameter.shape.join()) {
      problems.push(`${key} is [${entry.shape.join(', ')}], the base asks for [${parameter.shape.join(', ')}]`);
    }
  }
  for (const name of source.entries.keys()) {
    const key = name.startsWith(prefix) ? name.slice(prefix.length) : name;
    // PEFT stores a copy of a targeted table; ours is the base's own.
    if (!adapter.parameters.has(key) && !key.endsWith('.base_layer.weight'))
      problems.push(`${name} has no place in it`);
  }
  if (problems.length > 0) {
    adapter.detach();
    const more = problems.length > 16 ? `; and ${problems.length - 16} more` : '';
    throw new GraftError('mismatch', `the adapter does not fit this base: ${problems.slice(0, 16).join('; ')}${more}`, {
      place: dir,
      data: { problems },
    });
  }
  noGrad(() => {
    for (const [key, parameter] of adapter.parameters) {
      using _ = scope();
      const entry = source.entries.get(prefix + key)!;
      const stored = Tensor.empty(entry.shape, entry.format as DType);
      source.read(entry.name, stored.bytes());
      ops.copy_(parameter, stored);
    }
  });
  return adapter;
}

/** What is written beside the parameters. */
export interface SaveOptions {
  /** Path or id of the base, for whoever loads the adapter. */
  readonly base: string;
  readonly taskType?: 'CAUSAL_LM';
}

/** Saves an adapter so that PEFT loads it; replaces `dir` at once or not at all. */
export function saveAdapter(
  model: Model,
  adapter: Adapter,
  dir: string,
  { base, taskType = 'CAUSAL_LM' }: SaveOptions,
): void {
  const method = methods[adapter.method as keyof typeof methods] as Method<unknown>;
  if (!method.peftType) {
    throw new GraftError('usage', `PEFT has no format for the method '${adapter.method}'`, {
      mend: 'Save the whole model instead',
    });
  }
  const config = {
    ...adapter.config,
    peft_type: method.peftType,
    task_type: taskType,
    base_model_name_or_path: base,
    inference_mode: true,
    revision: null,
    auto_mapping: null,
    ...adapter.savedConfig?.(),
  };
  const sorted = Object.fromEntries(Object.entries(config).sort(([a], [b]) => (a < b ? -1 : 1)));
  writeDirectory(dir, (work) => {
    writeFileSync(join(work, 'adapter_config.json'), `${JSON.stringify(sorted, null, 2)}\n`);
    writeSafetensors(join(work, 'adapter_model.safetensors'), tensors(model, adapter), { format: 'pt' });
    writeFileSync(join(work, 'README.md'), card(adapter, base));
  });
}

function* tensors(model: Model, adapter: Adapter) {
  const entry = (key: string, tensor: Tensor) => ({
    name: prefix + key,
    dtype: tensor.dtype,
    shape: tensor.shape,
    bytes: () => tensor.bytes(),
  });
  for (const [key, tensor] of adapter.parameters) {
    yield entry(key, tensor);
    // PEFT saves a targeted embedding's or head's own table too (save_embedding_layers="auto").
    const path = /^(.*)\.lora_(embedding_A|A\.weight)$/.exec(key)?.[1];
    if (path && (path === model.sites.embeddings || path === model.sites.head)) {
      const table = (moduleAt(model.root, path) as unknown as { denseWeight(): Tensor }).denseWeight();
      yield entry(`${path}.base_layer.weight`, table);
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
