/** The files beside the weights of a Hugging Face directory. */
import { copyFileSync, existsSync, mkdirSync, readdirSync, statSync } from 'node:fs';
import { join, normalize } from 'node:path';
import { readJson } from '../io/index.ts';

/** Weights and what describes them, in any format: those of the base, which a saved model has its own of. */
const weights =
  /(\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|onnx|onnx_data|gguf|ot|npz|tflite|pkl|mlmodel)(\.\d+|\.part)?|\.index\.json)$/;

/** A saved model has its own, or they say something about the base's training or repository. */
const ofTheBase =
  /^(config\.json|adapter_config\.json|(README|CHANGELOG)(\.\w+)?|trainer_state\.json|training_args\..*)$/i;

/** Folders that belong to a model whatever else is there. */
const folders = ['additional_chat_templates'];

/** What stands beside a model's weights: paths from its directory, and whether each goes with a model that is made of it. */
interface Companions {
  readonly copied: readonly string[];
  readonly left: readonly string[];
}

/** Returns what stands in `dir` beside `config.json` and the weights; nothing that begins with a dot. */
export function companionsIn(dir: string): Companions {
  const kept = new Set([...folders, ...moduleFolders(dir)]);
  const [copied, left]: [string[], string[]] = [[], []];
  for (const name of readdirSync(dir).sort()) {
    if (name.startsWith('.') || name === 'config.json' || weights.test(name)) continue;
    const isFolder = statSync(join(dir, name)).isDirectory();
    const goes = isFolder ? kept.has(name) : !ofTheBase.test(name);
    (goes ? copied : left).push(isFolder ? `${name}/` : name);
  }
  return { copied, left };
}

/** Returns the folders that sentence-transformers' `modules.json` names, or without one those that it usually names. */
function moduleFolders(dir: string): string[] {
  const file = join(dir, 'modules.json');
  if (!existsSync(file)) return ['1_Pooling', '2_Normalize'];
  const modules = readJson(file);
  const paths = Array.isArray(modules) ? modules.map((module) => (module as { path?: unknown } | null)?.path) : [];
  return paths.flatMap((path) => (typeof path === 'string' && path !== '' ? [normalize(path).split('/')[0]!] : []));
}

/** Copies the companions of the model in `from` into `to`; links, as the Hub's cache has them, become files. */
export function copyCompanions(from: string, to: string): Companions {
  const companions = companionsIn(from);
  for (const name of companions.copied) copyTree(join(from, name), join(to, name));
  return companions;
}

function copyTree(from: string, to: string): void {
  if (!statSync(from).isDirectory()) {
    copyFileSync(from, to);
    return;
  }
  mkdirSync(to);
  for (const name of readdirSync(from)) copyTree(join(from, name), join(to, name));
}
