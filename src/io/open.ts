import { closeSync, openSync, readdirSync, readSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import { openGguf } from './gguf.ts';
import { openSafetensors } from './safetensors.ts';
import { openTorch } from './torch.ts';
import type { WeightSource } from './weight-source.ts';

/**
 * Opens weights: a GGUF or safetensors file, whose format is detected from its content, an index of shards, or a directory
 * with safetensors or else with one GGUF model. Throws as `openGguf` and `openSafetensors` do.
 */
export function openWeights(path: string): WeightSource {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat?.isDirectory()) {
    const names = readdirSync(path).sort();
    const ggufFiles = names.filter((name) => /\.gguf$/.test(name) && !/-(?!00001)\d{5}-of-\d{5}\.gguf$/.test(name));
    if (ggufFiles.length === 0 || names.some((name) => /\.safetensors(\.index\.json)?$/.test(name)))
      return openSafetensors(path);
    if (ggufFiles.length === 1) return openGguf(join(path, ggufFiles[0]!));
    throw new GraftError('input', `There are ${ggufFiles.length} GGUF models in this directory`, {
      place: path,
      hint: `Give the path of one of them: ${ggufFiles.slice(0, 3).join(', ')}`,
    });
  }
  return isGguf(path, stat?.isFile() ?? false) ? openGguf(path) : openSafetensors(path);
}

/**
 * Opens the weights of a Hugging Face directory: safetensors, else `pytorch_model.bin`, also as shards with an index. Throws as
 * `openSafetensors` and `openTorch` do.
 */
export function openModelWeights(dir: string): WeightSource {
  const names = readdirSync(dir);
  const pickle = ['pytorch_model.bin', 'pytorch_model.bin.index.json'].find((name) => names.includes(name));
  const hasOthers = names.some((name) => /\.safetensors(\.index\.json)?$/.test(name));
  return pickle && !hasOthers ? openTorch(join(dir, pickle)) : openSafetensors(dir);
}

function isGguf(path: string, isFile: boolean): boolean {
  if (path.endsWith('.gguf')) return true;
  if (!isFile) return false;
  const head = Buffer.alloc(4);
  const fd = openSync(path, 'r');
  try {
    readSync(fd, head, 0, 4, 0);
  } finally {
    closeSync(fd);
  }
  return head.toString('latin1') === 'GGUF';
}
