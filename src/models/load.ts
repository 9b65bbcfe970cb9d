import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import { openGguf, openSafetensors, readJsonObject, type WeightSource } from '../io/index.ts';
import type { Linear, Model, TaskHead, TaskName } from '../nn/index.ts';
import { noGrad, ops, type Tensor } from '../tensor/index.ts';
import { taskOfArchitecture } from './architectures.ts';
import type { Family } from './family.ts';
import { StoredReader, type StoredWeight } from './reader.ts';
import { families } from './registry.ts';
import { sentenceLength, sentenceSettings } from './sentence.ts';
import { type HeadOptions, LoadedWeights, type LoadOptions } from './stored-weights.ts';
import { requireMemory } from './weight-memory.ts';

/**
 * Loads a model from a Hugging Face directory (config.json and safetensors) or a GGUF file.
 * @throws GraftError 'input' for a broken file or an unknown family, 'mismatch' listing every weight that does not fit
 */
export const loadModel = (path: string, options: LoadOptions = {}): Model => loadModels(path, [options], options)[0]!;

/**
 * As `loadModel`, a model for each head, all on one body: what goes on the body of one is on all, and disposing of one frees
 * all. Heads without labels of their own are one model.
 */
export function loadModels(path: string, heads: readonly HeadOptions[], options: LoadOptions = {}): Model[] {
  const { source, config, family, stored } = openModel(path);
  using _ = source;
  const entries = [...stored.values()].map(({ entry }) => entry);
  requireMemory(path, entries, options.quantize ?? 'none', options.dtype);
  return noGrad(() => {
    const labels = heads.find((head) => head.labels)?.labels;
    using reader = new StoredReader(source);
    const weights = new LoadedWeights(path, reader, stored, family.prefixes, { ...options, ...(labels && { labels }) });
    try {
      const tasks = heads.map((head) => taskOf(family, config, head));
      const modelFor = family.build(config, weights);
      const unlabelled = new Map<TaskName, Model>();
      const models = tasks.map((task) => {
        const made = unlabelled.get(task.name);
        if (made) return made;
        weights.fresh = []; // a new head's first values are those that it would have alone
        weights.renamed = areRenamed(task.labels, config) ? task.labels.length : undefined;
        const model = modelFor(task.name === 'embedding' ? { ...task, ...sentenceSettings(path) } : task);
        const most = task.name === 'embedding' ? sentenceLength(path) : undefined;
        if (most !== undefined) model.contextLength = Math.min(model.contextLength, most);
        model.stored = (at, layer) => storedWeight(path, model.fileKey?.(at) ?? at, layer);
        if (task.labels.length === 0) unlabelled.set(task.name, model);
        return model;
      });
      weights.finish();
      if (options.trainedHead && weights.fresh.length > 0) {
        const [{ name }] = tasks as [TaskHead];
        throw new GraftError('mismatch', `the checkpoint has no head for ${name}: ${weights.fresh.join(', ')}`, {
          hint: 'Train one first and give the adapter',
        });
      }
      return models;
    } catch (cause) {
      weights.release();
      throw placed(cause, path);
    }
  });
}

function storedWeight(path: string, at: string, { outFeatures, inFeatures, transposed }: Linear): Tensor {
  const { source, family, stored } = openModel(path);
  using _ = source;
  using reader = new StoredReader(source);
  const weights = new LoadedWeights(path, reader, stored, family.prefixes, {});
  const { weight } = transposed
    ? weights.transposed(at, outFeatures, inFeatures)
    : weights.linear(at, outFeatures, inFeatures);
  const copy = ops.clone(weight);
  weights.release();
  return copy;
}

/** The task to load for, and its labels. @throws GraftError 'usage' for one that the family does not have */
function taskOf(family: Family, config: Record<string, unknown>, options: HeadOptions): TaskHead {
  const [architecture = ''] = (config.architectures as string[] | undefined) ?? [];
  const said = taskOfArchitecture(architecture);
  const name = options.task ?? (said && family.tasks.includes(said) ? said : family.tasks[0]!);
  if (!family.tasks.includes(name)) {
    throw new GraftError('usage', `${family.types[0]} models cannot be loaded for ${name}`, {
      place: 'task',
      hint: `They are for ${family.tasks.join(', ')}`,
    });
  }
  if (name === 'causal-lm' || name === 'embedding') return { name, labels: [] };
  if (name === 'question-answering') return { name, labels: ['start', 'end'] };
  const named = config.id2label as Record<string, string> | undefined;
  const count = (config.num_labels as number | undefined) ?? 2;
  const stored = named
    ? Object.entries(named)
        .sort(([a], [b]) => Number(a) - Number(b))
        .map(([, label]) => label)
    : Array.from({ length: count }, (_, i) => `LABEL_${i}`);
  if (
    config.problem_type === 'regression' &&
    !options.labels &&
    stored.length > 1 &&
    name === 'sequence-classification'
  ) {
    throw new GraftError('input', `the head gives ${stored.length} numbers at a time, which Graft does not have`, {
      place: 'config.json, problem_type',
      hint: 'Name one label under labels for a new head of one number',
    });
  }
  const several = options.multiLabel ?? (config.problem_type === 'multi_label_classification' && !options.labels);
  return { name, labels: options.labels ?? stored, ...(several && { multiLabel: true }) };
}

/** The checkpoint's classes have names, and these are others. `LABEL_0` is transformers' name for one that has none. */
function areRenamed(labels: readonly string[], { id2label }: Record<string, unknown>): boolean {
  const own = Object.entries((id2label ?? {}) as Record<string, string>);
  return own.some(([i, name]) => name !== `LABEL_${i}` && name !== labels[Number(i)]);
}

/** What a checkpoint is for by itself, and the labels of the head that it has or would get. */
export function headOf(path: string): TaskHead {
  const { source, config, family } = openModel(path);
  using _ = source;
  return taskOf(family, config, {});
}

/** The config and the list of weights, without reading any. */
export function openModel(path: string): {
  source: WeightSource;
  config: Record<string, unknown>;
  family: Family;
  stored: Map<string, StoredWeight>;
} {
  if (!existsSync(path)) throw new GraftError('input', 'there is no such model file or directory', { place: path });
  try {
    return statSync(path).isDirectory() ? openDirectory(path) : openGgufModel(path);
  } catch (error) {
    throw placed(error, path);
  }
}

/** An error about a config, with the file that the config is from. */
function placed(error: unknown, path: string): unknown {
  if (!(error instanceof GraftError) || error.place) return error;
  return error.at(statSync(path).isDirectory() ? join(path, 'config.json') : path);
}

function openDirectory(path: string) {
  const config = readJsonObject(join(path, 'config.json'));
  const type = String(config.model_type);
  const family = families.find((f) => f.types.includes(type));
  if (!family) {
    throw new GraftError('input', `model_type '${type}' is not one that Graft knows`, {
      place: join(path, 'config.json'),
      hint: `Known are ${families.flatMap((f) => f.types).join(', ')}`,
    });
  }
  const source = openSafetensors(path);
  // Checkpoints that were made from TensorFlow's, bert-base-uncased among them, have its names of a norm's tensors.
  const key = (name: string) =>
    name.replace(/LayerNorm\.gamma$/, 'LayerNorm.weight').replace(/LayerNorm\.beta$/, 'LayerNorm.bias');
  const stored = new Map(
    [...source.entries].map(([name, entry]) => [key(name), { entry, interleavedHeads: undefined }]),
  );
  return { source, config, family, stored };
}

function openGgufModel(path: string) {
  const source = openGguf(path);
  const architecture = String(source.metadata.get('general.architecture'));
  const family = families.find((f) => f.gguf?.architectures.includes(architecture));
  if (!family?.gguf) {
    source[Symbol.dispose]();
    throw new GraftError('input', `the GGUF architecture '${architecture}' is not one that Graft knows`, {
      place: path,
      hint: `Known are ${families.flatMap((f) => f.gguf?.architectures ?? []).join(', ')}`,
    });
  }
  const names = family.gguf.names(source.metadata);
  const stored = new Map<string, StoredWeight>();
  for (const [name, entry] of source.entries) {
    const key = names.key(name);
    if (key) stored.set(key, { entry, interleavedHeads: names.interleavedHeads(name) });
  }
  const config = family.gguf.config(source.metadata, (name) => source.entries.has(name));
  // Llama 3's stretched rope is in the file as one divisor per frequency.
  const divisors = source.entries.get('rope_freqs.weight');
  if (divisors) {
    const values = new Float32Array(divisors.bytes / 4);
    source.read('rope_freqs.weight', new Uint8Array(values.buffer));
    config.rope_parameters = {
      ...(config.rope_parameters as object),
      rope_type: 'divisors',
      divisors: Array.from(values),
    };
  }
  return { source, config, family, stored };
}
