/**
 * Heads saved with AdapterHub's adapters: `head_config.json` and `model_head.safetensors`. A head of a transformers class
 * has the keys of its model; a flexible head of AdapterHub (`heads.NAME.1.weight`) is a sequence of layers, which a model
 * of Graft has under other names where it computes the same (adapters/heads/base.py PredictionHead.build).
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError, type Steps } from '../../base/index.ts';
import { readJsonObject, type WeightSource, writeSafetensors } from '../../io/index.ts';
import type { HeadOptions } from '../../models/index.ts';
import type { Model, TaskName } from '../../nn/index.ts';
import { familyOfType } from '../family-names.ts';
import type { HeadTensors } from '../layout.ts';
import { fillTensors, findWeights, tensorToWrite } from '../tensor-files.ts';

export const headConfigName = 'head_config.json';
/** Files of weights, the one that Graft writes first. */
export const headWeightFiles = ['model_head.safetensors', 'pytorch_model_head.bin'] as const;

/** Whether a head was saved with the adapter. */
export const hasHead = (dir: string): boolean => existsSync(join(dir, headConfigName));

/** The head's weights, or undefined where the directory has none. */
export const openHead = (dir: string): WeightSource | undefined =>
  hasHead(dir) ? findWeights(dir, headWeightFiles) : undefined;

/** The config of a flexible head. */
interface FlexibleHead {
  readonly head_type?: string;
  readonly layers?: number;
  readonly activation_function?: string | null;
  readonly use_pooler?: boolean;
  readonly label2id?: Record<string, number>;
}

const readHeadConfig = (dir: string) => {
  const { config, name, label2id, model_class } = readJsonObject(join(dir, headConfigName));
  return { flexible: (config ?? undefined) as FlexibleHead | undefined, name, label2id, model_class };
};

const taskByClass: readonly (readonly [RegExp, TaskName])[] = [
  [/ForSequenceClassification$/, 'sequence-classification'],
  [/ForTokenClassification$/, 'token-classification'],
  [/ForQuestionAnswering$/, 'question-answering'],
  [/ForImageClassification$/, 'image-classification'],
];

const taskByHeadType: Readonly<Record<string, TaskName>> = {
  classification: 'sequence-classification',
  tagging: 'token-classification',
  question_answering: 'question-answering',
  image_classification: 'image-classification',
};

/** The task and the labels of the saved head; empty where there is no head for a task of Graft. */
export function taskOfHead(dir: string): HeadOptions {
  if (!hasHead(dir)) return {};
  const { flexible, label2id, model_class } = readHeadConfig(dir);
  const ids = (flexible?.label2id ?? label2id) as Record<string, number> | null;
  const task = flexible
    ? taskByHeadType[flexible.head_type ?? '']
    : taskByClass.find(([name]) => name.test(String(model_class)))?.[1];
  if (!task) return {};
  return {
    task,
    ...(ids && { labels: Object.keys(ids).sort((a, b) => ids[a]! - ids[b]!) }),
  };
}

/**
 * The model's modules by the path of the same layer in the file.
 * @throws GraftError 'input' where the model's head computes something else
 */
function modulesOf(model: Model, dir: string, source: WeightSource): Map<string, string> {
  const stored = [...new Set([...source.entries.keys()].map((key) => key.slice(0, key.lastIndexOf('.'))))];
  const { flexible, name } = readHeadConfig(dir);
  if (!flexible) return new Map(stored.map((path) => [path, path]));
  const refusal = (why: string) =>
    new GraftError('input', `the saved head is a flexible head of AdapterHub: ${why}`, {
      place: dir,
      hint: 'Load the adapter under a head of the model',
    });
  const { head } = model.sites;
  if (!head || taskByHeadType[flexible.head_type ?? ''] !== model.task.name) {
    throw refusal(`its type ${flexible.head_type} is for another task`);
  }
  const { layers, activation_function: activation, use_pooler: usesPooler } = flexible;
  const [first, second] = [`heads.${name}.1`, `heads.${name}.4`];
  const classifiesRows = model.task.name === 'sequence-classification';
  const rowHead = classifiesRows ? familyOfType(model.config.model_type)?.adapterHub?.rowHead : undefined;
  if (layers === 2 && activation === 'tanh' && !usesPooler && rowHead) {
    return new Map([
      [first, rowHead[0]],
      [second, rowHead[1]],
    ]);
  }
  // Where the first layer is outside of the head, it is the pooler, and the saved head is the second layer only.
  const hasPooler = rowHead && rowHead[1] === head;
  if (layers === 1 && (rowHead ? hasPooler && usesPooler : !usesPooler)) return new Map([[first, head]]);
  throw refusal(`it has ${layers} layers with ${activation}, unlike the head of this model`);
}

/** Paths of the model's modules, other than its head, that the saved head also consists of. */
export function headModules(model: Model, dir: string): string[] {
  using source = openHead(dir);
  const { head } = model.sites;
  if (!source || !head) return [];
  return [...modulesOf(model, dir, source).values()].filter((path) => path !== head && !path.startsWith(`${head}.`));
}

/** Copies the saved head, if there is one, into the parameters of the model's. @throws as `fillTensors` does */
export function* fillHead(model: Model, dir: string, head: HeadTensors): Steps<void> {
  using source = head.size > 0 ? openHead(dir) : undefined;
  if (!source) return;
  const modules = [...modulesOf(model, dir, source)];
  const parameters = new Map(
    [...head].map(([key, tensor]) => {
      const dot = key.lastIndexOf('.');
      const stored = modules.find(([, path]) => path === key.slice(0, dot))?.[0];
      return [stored ? stored + key.slice(dot) : key, tensor];
    }),
  );
  yield* fillTensors(source, parameters, dir);
}

/**
 * Writes the head, if the model has one, into the directory `work`, as one of a transformers class.
 * @param writeConfig writes a config file with what all files say of the model
 */
export function writeHead(
  model: Model,
  head: HeadTensors,
  work: string,
  writeConfig: (file: string, fields: Record<string, unknown>) => void,
): void {
  if (head.size === 0) return;
  const { architecture: model_class } = model; // of the model in transformers, whatever class the adapter is for
  writeConfig(headConfigName, { ...fixedHeadFields(model.task.labels), model_class });
  writeSafetensors(join(work, headWeightFiles[0]), [...head].map(tensorToWrite));
}

/** Fields in the config of a head of a transformers class. */
export const fixedHeadFields = (labels: readonly string[]) => ({
  config: null,
  name: null,
  label2id: Object.fromEntries(labels.map((label, i) => [label, i])),
  num_labels: labels.length,
});
