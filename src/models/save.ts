import { cpSync, existsSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import { writeDirectory, writeSafetensors } from '../io/index.ts';
import { Embedding, Linear, type Model, type Module, namedModules } from '../nn/index.ts';
import { type DType, ops, scoped, Tensor } from '../tensor/index.ts';

const beside = [
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'generation_config.json',
  'chat_template.jinja',
  'vocab.json',
  'merges.txt',
  'vocab.txt',
  'added_tokens.json',
  'preprocessor_config.json',
  // Of sentence-transformers.
  'modules.json',
  'config_sentence_transformers.json',
  'sentence_bert_config.json',
  '1_Pooling',
  '2_Normalize',
] as const;

/**
 * Writes the whole model as a Hugging Face directory that transformers loads: config.json, model.safetensors and, where
 * `source` is a directory, the files beside it (tokenizer, preprocessing, pooling). `extra` are more files by name (a tokenizer taken from a GGUF file).
 */
export function saveModel(
  model: Model,
  dir: string,
  source: string,
  dtype: DType = 'float32',
  extra: Readonly<Record<string, string>> = {},
): void {
  const config = configOf(model);
  writeDirectory(dir, (work) => {
    writeFileSync(join(work, 'config.json'), JSON.stringify({ ...config, dtype }, null, 2));
    writeSafetensors(join(work, 'model.safetensors'), weights(model, dtype), { format: 'pt' });
    if (statSync(source).isDirectory()) {
      for (const name of beside)
        if (existsSync(join(source, name))) cpSync(join(source, name), join(work, name), { recursive: true });
    }
    for (const [name, text] of Object.entries(extra)) writeFileSync(join(work, name), text);
  });
}

/** As `config.json` of a checkpoint with this task's head. */
function configOf(model: Model): Record<string, unknown> {
  const { config, task, architecture } = model;
  const kept = Object.fromEntries(Object.entries(config).filter(([, value]) => value !== undefined));
  kept.architectures = [architecture];
  if (kept.tie_word_embeddings && task.name === 'causal-lm') kept.tie_word_embeddings = tied(model);
  // Of another task's head, if the checkpoint had one. One label is a number, several are classes, unless:
  for (const field of ['id2label', 'label2id', 'num_labels', 'problem_type']) delete kept[field];
  if (task.labels.length === 0 || task.name === 'question-answering') return kept;
  if (task.multiLabel) kept.problem_type = 'multi_label_classification';
  kept.id2label = Object.fromEntries(task.labels.map((label, i) => [i, label]));
  kept.label2id = Object.fromEntries(task.labels.map((label, i) => [label, i]));
  return kept;
}

/**
 * Every tensor of the base under its key, by the module that holds it. Wrappers of merged or switched-off adapters are
 * looked through.
 * @throws GraftError 'state' for an adapter at work that is not in the weights
 */
function* stored(model: Model): Generator<{ name: string; tensor: Tensor; module: Module; field: string }> {
  if (model.ports.anyEnabled) {
    throw new GraftError('state', 'an adapter is at work between the layers, and a model is saved without it', {
      hint: 'Merge or detach it first',
    });
  }
  for (const [path, outer] of namedModules(model.root)) {
    const module = isLayer(outer) ? outer.plain() : outer;
    if (!module) {
      throw new GraftError('state', `an adapter is at work on '${path}', and its update is not in the weights`, {
        hint: 'Merge or detach it first',
      });
    }
    for (const [field, tensor] of Object.entries(module)) {
      const key = path === '' ? field : `${path}.${field}`;
      if (tensor instanceof Tensor) yield { name: model.fileKey?.(key) ?? key, tensor, module, field };
    }
  }
}

const isLayer = (module: Module): module is Module & { plain(): Linear | Embedding | undefined } => 'plain' in module;

/** Every weight, dense, under its key; tied ones once. */
function* weights(model: Model, dtype: DType) {
  const seen = new Set<Tensor>();
  for (const { name, tensor, module, field } of stored(model)) {
    if (seen.has(tensor)) continue;
    seen.add(tensor);
    if ((module instanceof Linear || module instanceof Embedding) && field === 'weight') {
      const shape = [tensor.size(0), module instanceof Linear ? module.inFeatures : module.width];
      if (module instanceof Linear && module.transposed) {
        const transposed = () => ops.contiguous(ops.t(module.denseWeight()));
        yield { name, dtype, shape: shape.reverse(), bytes: () => bytesOf(transposed, dtype) };
      } else yield { name, dtype, shape, bytes: () => bytesOf(() => module.denseWeight(), dtype) };
    } else {
      yield { name, dtype, shape: tensor.shape, bytes: () => bytesOf(() => tensor, dtype) };
    }
  }
}

/** Whether head and embeddings still are one table: an adapter on one of them parts them. */
function tied(model: Model): boolean {
  const { embeddings, head } = model.sites;
  const tables = [...stored(model)].filter(({ name }) => name === `${embeddings}.weight` || name === `${head}.weight`);
  return tables.length === 2 && tables[0]!.tensor === tables[1]!.tensor;
}

function bytesOf(from: () => Tensor, dtype: DType): Uint8Array {
  let bytes: Uint8Array = new Uint8Array();
  scoped(() => {
    const tensor = from();
    bytes = (tensor.dtype === dtype ? tensor : ops.toCopy(tensor, { dtype })).bytes();
    return undefined;
  });
  return bytes;
}
