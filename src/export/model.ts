import { copyFileSync, existsSync, statSync, writeFileSync } from 'node:fs';
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
] as const;

/**
 * Writes the whole model as a Hugging Face directory that transformers loads: config.json, model.safetensors and, where
 * `source` is a directory, its tokenizer files. `extra` are more files by name (a tokenizer taken from a GGUF file).
 */
export function saveModel(
  model: Model,
  dir: string,
  source: string,
  dtype: DType = 'float32',
  extra: Readonly<Record<string, string>> = {},
): void {
  const config = Object.fromEntries(Object.entries(model.config).filter(([, value]) => value !== undefined));
  if (config.tie_word_embeddings) config.tie_word_embeddings = tied(model);
  writeDirectory(dir, (work) => {
    writeFileSync(join(work, 'config.json'), JSON.stringify({ ...config, dtype }, null, 2));
    writeSafetensors(join(work, 'model.safetensors'), weights(model, dtype), { format: 'pt' });
    if (statSync(source).isDirectory()) {
      for (const name of beside) if (existsSync(join(source, name))) copyFileSync(join(source, name), join(work, name));
    }
    for (const [name, text] of Object.entries(extra)) writeFileSync(join(work, name), text);
  });
}

/**
 * Every tensor of the base under its key, by the module that holds it. Wrappers of merged or switched-off adapters are
 * looked through.
 * @throws GraftError 'state' for an adapter at work that is not in the weights
 */
function* stored(model: Model): Generator<{ name: string; tensor: Tensor; module: Module; field: string }> {
  for (const [path, outer] of namedModules(model.root)) {
    const module = isLayer(outer) ? outer.plain() : outer;
    if (!module) {
      throw new GraftError('state', `an adapter is at work on '${path}', and its update is not in the weights`, {
        mend: 'Merge or detach it first',
      });
    }
    for (const [field, tensor] of Object.entries(module)) {
      if (tensor instanceof Tensor) yield { name: `${path}.${field}`, tensor, module, field };
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
      yield { name, dtype, shape, bytes: () => bytesOf(() => module.denseWeight(), dtype) };
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
