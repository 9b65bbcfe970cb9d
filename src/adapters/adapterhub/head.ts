/**
 * Heads beside AdapterHub's adapters: `head_config.json` and `model_head.safetensors`. A fixed head has the keys of its
 * model; one of AdapterHub's own (`heads.NAME.1.weight`) is a row of layers, which a model here has under other names
 * where it computes the same (adapters/heads/base.py PredictionHead.build).
 */
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../../base/index.ts';
import { openSafetensors, openTorch, readJsonObject, type WeightSource, writeSafetensors } from '../../io/index.ts';
import { type Model, namedModules, type TaskName } from '../../nn/index.ts';
import type { Tensor } from '../../tensor/index.ts';
import { entryOf, fill } from '../peft/index.ts';

const fileNames = ['model_head.safetensors', 'pytorch_model_head.bin'] as const;

/** The head's weights, or undefined where the directory has none. */
export function openHead(dir: string): WeightSource | undefined {
  const name = fileNames.find((file) => existsSync(join(dir, file)));
  if (!existsSync(join(dir, 'head_config.json')) || !name) return undefined;
  return name.endsWith('.bin') ? openTorch(join(dir, name)) : openSafetensors(join(dir, name));
}

/** Whether there is a head beside the adapter. */
export const hasHead = (dir: string): boolean => existsSync(join(dir, 'head_config.json'));

/** What AdapterHub says of a head of its own. */
interface Own {
  readonly head_type?: string;
  readonly layers?: number;
  readonly activation_function?: string | null;
  readonly use_pooler?: boolean;
  readonly label2id?: Record<string, number>;
}

const facts = (dir: string) => {
  const { config, name, label2id, model_class } = readJsonObject(join(dir, 'head_config.json'));
  return { own: (config ?? undefined) as Own | undefined, name, label2id, model_class };
};

const classes: readonly (readonly [RegExp, TaskName])[] = [
  [/ForSequenceClassification$/, 'sequence-classification'],
  [/ForTokenClassification$/, 'token-classification'],
  [/ForQuestionAnswering$/, 'question-answering'],
  [/ForImageClassification$/, 'image-classification'],
];

const ownTypes: Readonly<Record<string, TaskName>> = {
  classification: 'sequence-classification',
  tagging: 'token-classification',
  question_answering: 'question-answering',
  image_classification: 'image-classification',
};

/** The task and the labels of the head beside an adapter, where there is one. */
export function taskOfAdapterHub(dir: string): { task?: TaskName; labels?: string[] } {
  if (!hasHead(dir)) return {};
  const { own, label2id, model_class } = facts(dir);
  const ids = (own?.label2id ?? label2id) as Record<string, number> | null;
  const task = own ? ownTypes[own.head_type ?? ''] : classes.find(([name]) => name.test(String(model_class)))?.[1];
  if (!task) return {};
  return {
    task,
    ...(ids && { labels: Object.keys(ids).sort((a, b) => ids[a]! - ids[b]!) }),
  };
}

/**
 * The modules of the model that the file's layers are, by the beginning of their keys.
 * @throws GraftError 'input' where the model computes something else
 */
function modulesOf(model: Model, dir: string, source: WeightSource): Map<string, string> {
  const stored = [...new Set([...source.entries.keys()].map((key) => key.slice(0, key.lastIndexOf('.'))))];
  const { own, name } = facts(dir);
  if (!own) return new Map(stored.map((path) => [path, path]));
  const refused = (why: string) =>
    new GraftError('input', `its head is one of AdapterHub's own, and ${why}`, {
      place: dir,
      hint: 'Load the adapter under a head of the model',
    });
  const { head } = model.sites;
  if (!head || ownTypes[own.head_type ?? ''] !== model.task.name) {
    throw refused(`of the type ${own.head_type}, which is for another task`);
  }
  const paths = [...namedModules(model.root)].map(([path]) => path);
  const dense = paths.find((path) => path === `${head}.dense`);
  const pooler = paths.find((path) => path.endsWith('pooler.dense'));
  const [first, second] = [`heads.${name}.1`, `heads.${name}.4`];
  const rows = model.task.name === 'sequence-classification';
  if (own.layers === 2 && own.activation_function === 'tanh' && !own.use_pooler && rows) {
    if (dense)
      return new Map([
        [first, dense],
        [second, `${head}.out_proj`],
      ]);
    if (pooler)
      return new Map([
        [first, pooler],
        [second, head],
      ]);
  }
  if (own.layers === 1 && !dense && (rows && pooler ? own.use_pooler : !own.use_pooler))
    return new Map([[first, head]]);
  throw refused(`has ${own.layers} layers with ${own.activation_function}, as the head of this model has not`);
}

/** Modules beside the model's head that the file's head is made of too. */
export function besideHead(model: Model, dir: string): string[] {
  using source = openHead(dir);
  const { head } = model.sites;
  if (!source || !head) return [];
  return [...modulesOf(model, dir, source).values()].filter((path) => path !== head && !path.startsWith(`${head}.`));
}

/** Fills the head's tensors, if the directory has a head. @throws as `fill` does */
export function fillHead(model: Model, dir: string, head: ReadonlyMap<string, Tensor>): void {
  using source = head.size > 0 ? openHead(dir) : undefined;
  if (!source) return;
  const modules = [...modulesOf(model, dir, source)];
  const named = [...head].map(([key, tensor]): [string, Tensor] => {
    const dot = key.lastIndexOf('.');
    const stored = modules.find(([, path]) => path === key.slice(0, dot))?.[0];
    return [stored ? stored + key.slice(dot) : key, tensor];
  });
  fill(source, new Map(named), dir);
}

/** Writes the head into the directory `work`, as a fixed one. */
export function writeHead(
  model: Model,
  head: ReadonlyMap<string, Tensor>,
  work: string,
  about: (own: Record<string, unknown>) => string,
): void {
  if (head.size === 0) return;
  const label2id = Object.fromEntries(model.task.labels.map((label, i) => [label, i]));
  // Of the model as transformers has it, whatever class the adapter is for.
  const { architecture: model_class } = model;
  const own = { config: null, name: null, label2id, num_labels: model.task.labels.length, model_class };
  writeFileSync(join(work, 'head_config.json'), about(own));
  writeSafetensors(join(work, fileNames[0]), [...head].map(entryOf));
}
