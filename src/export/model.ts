import { copyFileSync, existsSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { writeDirectory, writeSafetensors } from '../io/index.ts';
import { Embedding, Linear, type Model, namedModules, namedTensors } from '../nn/index.ts';
import { type DType, ops, scoped, type Tensor } from '../tensor/index.ts';

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
  writeDirectory(dir, (work) => {
    writeFileSync(join(work, 'config.json'), JSON.stringify({ ...config, dtype }, null, 2));
    writeSafetensors(join(work, 'model.safetensors'), weights(model, dtype), { format: 'pt' });
    if (statSync(source).isDirectory()) {
      for (const name of beside) if (existsSync(join(source, name))) copyFileSync(join(source, name), join(work, name));
    }
    for (const [name, text] of Object.entries(extra)) writeFileSync(join(work, name), text);
  });
}

/** Every weight, dense, under its key; tied ones once. */
function* weights(model: Model, dtype: DType) {
  const dense = new Map<string, () => Tensor>();
  for (const [path, module] of namedModules(model.root)) {
    if (module instanceof Linear || module instanceof Embedding)
      dense.set(`${path}.weight`, () => module.denseWeight());
  }
  const seen = new Set<Tensor>();
  for (const [key, tensor] of namedTensors(model.root)) {
    if (seen.has(tensor)) continue;
    seen.add(tensor);
    const from = dense.get(key) ?? (() => tensor);
    const shape = dense.has(key) ? shapeOf(model, key, tensor) : tensor.shape;
    yield { name: key, dtype, shape, bytes: () => bytesOf(from, dtype) };
  }
}

function shapeOf(model: Model, key: string, tensor: Tensor): readonly number[] {
  const module = [...namedModules(model.root)].find(([path]) => `${path}.weight` === key)![1];
  return [tensor.size(0), module instanceof Linear ? module.inFeatures : (module as Embedding).width];
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
