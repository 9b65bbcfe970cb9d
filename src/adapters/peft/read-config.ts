/** `adapter_config.json` as PEFT writes it. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { z } from 'zod';
import { GraftError, parseWith } from '../../base/index.ts';
import { readJsonObject, type WeightSource } from '../../io/index.ts';
import { type Method, methods } from '../../methods/index.ts';
import type { TaskName } from '../../nn/index.ts';
import { adapterNameFor } from '../adapter-names.ts';
import { headNames } from '../family-names.ts';
import type { SavedConfig } from '../layout.ts';
import { openWeightsOf } from '../tensor-files.ts';
import { tablesIn } from './tables.ts';

export const configName = 'adapter_config.json';

/** Fields that PEFT writes and that do not change what the adapter computes. */
const ignoredFields = new Set([
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
  // Of prompt methods: they follow from the model, or decided the initial values.
  'token_dim',
  'num_layers',
  'num_attention_heads',
  'num_transformer_submodules',
  'tokenizer_kwargs',
]);

const isUnused = (value: unknown) =>
  value === null || value === false || (typeof value === 'object' && Object.keys(value as object).length === 0);

/** Whether a directory is in PEFT's layout. */
export function isPeft(dir: string): boolean {
  const file = join(dir, configName);
  return existsSync(file) && typeof readJsonObject(file).peft_type === 'string';
}

/** The config of an adapter in PEFT's layout. @throws GraftError 'input' for methods and fields that Graft does not read */
export function readPeftConfig(dir: string): SavedConfig {
  const place = join(dir, configName);
  const raw = readJsonObject(place);
  const method: Method<unknown> | undefined = (Object.values(methods) as Method<unknown>[]).find(
    ({ peftType }) => peftType !== undefined && peftType === raw.peft_type,
  );
  if (!method) {
    const types = (Object.values(methods) as Method<unknown>[]).flatMap(({ peftType }) => peftType ?? []);
    throw new GraftError('input', `adapters of the type ${raw.peft_type} are not supported yet`, {
      place,
      hint: `Graft reads ${types.join(', ')}`,
    });
  }
  // PEFT trains the head with every method (peft_model.py, classifier_module_names), so it needs no mention.
  if (Array.isArray(raw.modules_to_save)) {
    raw.modules_to_save = raw.modules_to_save.filter((name) => !headNames.has(name));
    if ((raw.modules_to_save as unknown[]).length === 0) raw.modules_to_save = null;
  }
  const whole = unnamedTables(dir, Array.isArray(raw.modules_to_save) ? (raw.modules_to_save as string[]) : []);
  if (whole.length > 0) raw.modules_to_save = [...((raw.modules_to_save as string[] | null) ?? []), ...whole];
  const supported = Object.keys((method.config as unknown as z.ZodObject).shape);
  const present = Object.entries(raw).filter(([key, value]) => !ignoredFields.has(key) && value !== null);
  const unsupported = present.filter(([key, value]) => !supported.includes(key) && !isUnused(value));
  if (unsupported.length > 0) {
    const names = unsupported.map(([key]) => key).join(', ');
    throw new GraftError('input', `this adapter uses ${names}, which Graft does not support`, { place });
  }
  const fields = Object.fromEntries(present.filter(([key]) => supported.includes(key)));
  // These initial values leave the base unchanged: what was trained from them is LoRA like any other.
  if (fields.init_lora_weights === 'eva' || fields.init_lora_weights === 'orthogonal') fields.init_lora_weights = true;
  return {
    name: adapterNameFor(dir),
    method: method.name,
    config: parseWith(method.config, fields, place, 'input'),
    base: typeof raw.base_model_name_or_path === 'string' ? raw.base_model_name_or_path : undefined,
  };
}

/** The weights of an adapter. @throws GraftError 'input' where the directory has none */
export const openPeftWeights = (dir: string): WeightSource =>
  openWeightsOf(dir, ['adapter_model.safetensors', 'adapter_model.bin']);

/** Paths of tables that the file holds whole and the config does not name: they are as if it did. */
function unnamedTables(dir: string, named: readonly string[]): string[] {
  using source = openPeftWeights(dir);
  return tablesIn(source)
    .filter(({ path, isUpdated }) => !isUpdated && !named.some((name) => path.endsWith(name)))
    .map(({ path }) => path);
}

/**
 * For code that reads A and B without the base model.
 * @throws GraftError 'usage' for LoRA whose initialisation changed the base: its A and B are updates of the changed base
 */
export function requireUnchangedBase(config: unknown, dir: string): void {
  const { init_lora_weights: init } = config as { init_lora_weights?: unknown };
  if (typeof init !== 'string' || init === 'gaussian') return;
  throw new GraftError(
    'usage',
    `this adapter began with init_lora_weights: ${init}, which changes the base, so its A and B are not updates of the base itself`,
    {
      place: dir,
      hint: 'Save it in PEFT with path_initial_model_for_weight_conversion, which makes plain LoRA of it',
    },
  );
}

export const taskTypes: Partial<Record<TaskName, string>> = {
  'causal-lm': 'CAUSAL_LM',
  'sequence-classification': 'SEQ_CLS',
  'token-classification': 'TOKEN_CLS',
  'question-answering': 'QUESTION_ANS',
  embedding: 'FEATURE_EXTRACTION',
};

/** The task in the config's `task_type`, where Graft has it. */
export function taskNameOf(dir: string): TaskName | undefined {
  const { task_type: type } = readJsonObject(join(dir, configName));
  return (Object.keys(taskTypes) as TaskName[]).find((name) => taskTypes[name] === type);
}
