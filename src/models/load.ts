import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import {
  openGguf,
  openModelWeights,
  readJsonObject,
  requireReadableWeights,
  type ScratchFile,
  type WeightSource,
} from '../io/index.ts';
import { denseType, Linear, type Model, namedModules, type TaskHead, type TaskName } from '../nn/index.ts';
import { ggmlBlockNames, inputFormatOf, type Quantize } from '../quant/index.ts';
import { noGrad, ops, type Tensor } from '../tensor/index.ts';
import { taskOfArchitecture } from './architectures.ts';
import type { Family } from './family.ts';
import { withIntegers } from './integer-layout.ts';
import type { LaterWeights } from './later-weights.ts';
import { type HeadOptions, LoadedWeights, type LoadOptions } from './loaded-weights.ts';
import { MappedReader } from './mapped-reader.ts';
import { families } from './registry.ts';
import { sentenceLength, sentenceSettings } from './sentence.ts';
import { ShapesReader } from './shapes-reader.ts';
import { requireDisk, requireMemory } from './weight-memory.ts';
import { type StoredWeight, WeightReader } from './weight-reader.ts';

/**
 * Loads a model from a Hugging Face directory (config.json and safetensors, or pytorch_model.bin) or a GGUF file.
 * @throws GraftError 'input' for a damaged file or an unsupported family, 'mismatch' listing every missing weight and wrong shape
 */
export const loadModel = (path: string, options: LoadOptions = {}): Model => loadModels(path, [options], options)[0]!;

/**
 * As `loadModel`, with one model for each head, all on one body: a method attached to one is attached to all, and disposing
 * of one frees all. Tasks without labels share one model.
 * @param later no weight is read: they are absent, and this reads them afterwards
 * @param offload the weights stay in files: those that no file has as the model holds them are written to this one
 */
export function loadModels(
  path: string,
  heads: readonly HeadOptions[],
  options: LoadOptions = {},
  later?: LaterWeights,
  offload?: ScratchFile,
): Model[] {
  const { source, config: own, family, stored } = openModel(path);
  const { shapesOnly, weights: shared } = options;
  if (offload && shared)
    throw new GraftError('usage', 'weights that stay in their files are not shared', { place: 'weights' });
  using files = new DisposableStack();
  if (!later) files.use(source);
  const vocabRows = [...heads, options].find((head) => head.vocabRows)?.vocabRows;
  const config = vocabRows === undefined ? own : { ...own, vocab_size: vocabRows };
  if (!shapesOnly && !later && !offload && !shared?.entries.size)
    requireMemory(path, { stored, family }, options.quantize ?? 'none', { dtype: options.dtype ?? denseType() });
  return noGrad(() => {
    const labels = heads.find((head) => head.labels)?.labels;
    const reader = later
      ? later.readerOf(source)
      : files.use(
          shapesOnly
            ? new ShapesReader(source)
            : offload
              ? new MappedReader(source, offload)
              : (shared?.readerOf(source) ?? new WeightReader(source)),
        );
    const weights = new LoadedWeights(path, reader, stored, family.prefixes, {
      ...options,
      ...(labels && { labels }),
      ...(vocabRows !== undefined && { vocabRows }),
    });
    try {
      const tasks = heads.map((head) => taskOf(family, config, head));
      const modelFor = family.build(config, weights);
      const unlabelled = new Map<TaskName, Model>();
      const models = tasks.map((task) => {
        const existing = unlabelled.get(task.name);
        if (existing) return existing;
        weights.newHeads = []; // the initial values of a new head do not depend on the heads before it
        weights.relabelledClasses = hasOtherLabels(task.labels, config) ? task.labels.length : undefined;
        const model = modelFor(task.name === 'embedding' ? { ...task, ...sentenceSettings(path) } : task);
        const maxLength = task.name === 'embedding' ? sentenceLength(path) : undefined;
        if (maxLength !== undefined) model.contextLength = Math.min(model.contextLength, maxLength);
        model.stored = (layerPath, layer) => storedWeight(path, model.fileKey?.(layerPath) ?? layerPath, layer);
        if (task.labels.length === 0) unlabelled.set(task.name, model);
        return model;
      });
      weights.finish();
      if (options.activation === 'q8') requireRoundedInputs(models);
      if (options.trainedHead && weights.newHeads.length > 0) {
        const [{ name }] = tasks as [TaskHead];
        throw new GraftError('mismatch', `the checkpoint has no head for ${name}: ${weights.newHeads.join(', ')}`, {
          hint: 'Train a head first, and give its adapter',
        });
      }
      return models;
    } catch (cause) {
      weights.release();
      throw withPlace(cause, path);
    }
  });
}

/** @throws GraftError 'usage' for models of which no layer has a weight in blocks whose inputs llama.cpp rounds */
function requireRoundedInputs(models: readonly Model[]): void {
  const layers = models.flatMap(({ root }) => [...namedModules(root)].map(([, module]) => module));
  if (layers.some((layer) => layer instanceof Linear && inputFormatOf(layer.format) !== undefined)) return;
  throw new GraftError('usage', 'llama.cpp rounds inputs only where weights are in blocks, and this model has none', {
    place: 'activation',
    hint: `Load a GGUF file of ${ggmlBlockNames.join(', ')} with quantize: keep, or leave activation out`,
  });
}

/**
 * Refuses a model that does not fit into free memory, or on the disk.
 * @param sharers whole models that the processes of this machine load
 * @param offload where weights are written that stay in files, and whether each process writes a share. Default: they are in memory
 * @throws GraftError 'environment' with what would fit
 */
export function requireRoomFor(
  path: string,
  quantize: Quantize,
  sharers: number,
  offload?: { readonly dir: string; readonly isShared: boolean },
): void {
  const opened = openModel(path);
  using _ = opened.source;
  const dtype = denseType();
  if (offload) requireDisk(path, opened, quantize, { ...offload, copies: sharers, dtype });
  else requireMemory(path, opened, quantize, { sharers, dtype, trains: true });
}

/** Reads the weight of one layer from the checkpoint, as `Model.stored` does. */
function storedWeight(path: string, layerPath: string, { outFeatures, inFeatures, transposed }: Linear): Tensor {
  const { source, family, stored } = openModel(path);
  using _ = source;
  using reader = new WeightReader(source);
  const weights = new LoadedWeights(path, reader, stored, family.prefixes, {});
  const { weight } = transposed
    ? weights.transposed(layerPath, outFeatures, inFeatures)
    : weights.linear(layerPath, outFeatures, inFeatures);
  const copy = ops.clone(weight);
  weights.release();
  return copy;
}

/**
 * Returns the task to load the model for, with its labels.
 * @throws GraftError 'usage' for a task that the family does not have
 */
function taskOf(family: Family, config: Record<string, unknown>, options: HeadOptions): TaskHead {
  const [architecture = ''] = (config.architectures as string[] | undefined) ?? [];
  const checkpointTask = taskOfArchitecture(architecture);
  const defaultTask = family.tasks.find((task) => task === checkpointTask) ?? family.tasks[0]!;
  const name = options.task ?? defaultTask;
  if (!family.tasks.includes(name)) {
    throw new GraftError('usage', `${family.types[0]} models cannot be loaded for ${name}`, {
      place: 'task',
      hint: `Choose one of ${family.tasks.join(', ')}`,
    });
  }
  if (name === 'causal-lm' || name === 'embedding') return { name, labels: [] };
  if (name === 'question-answering') return { name, labels: ['start', 'end'] };
  const id2label = config.id2label as Record<string, string> | undefined;
  const count = (config.num_labels as number | undefined) ?? 2;
  const configLabels = id2label
    ? Object.entries(id2label)
        .sort(([a], [b]) => Number(a) - Number(b))
        .map(([, label]) => label)
    : Array.from({ length: count }, (_, i) => `LABEL_${i}`);
  if (
    config.problem_type === 'regression' &&
    !options.labels &&
    configLabels.length > 1 &&
    name === 'sequence-classification'
  ) {
    throw new GraftError('input', `regression with ${configLabels.length} outputs is not supported`, {
      place: 'config.json, problem_type',
      hint: 'Give one label under labels, for a new head with one output',
    });
  }
  const multiLabel = options.multiLabel ?? (config.problem_type === 'multi_label_classification' && !options.labels);
  return { name, labels: options.labels ?? configLabels, ...(multiLabel && { multiLabel: true }) };
}

/**
 * Whether the checkpoint names its classes, and differently from `labels`. `LABEL_0` is transformers' name of a class
 * without one.
 */
function hasOtherLabels(labels: readonly string[], { id2label }: Record<string, unknown>): boolean {
  const named = Object.entries((id2label ?? {}) as Record<string, string>);
  return named.some(([i, name]) => name !== `LABEL_${i}` && name !== labels[Number(i)]);
}

/** Returns the number of tokens of a checkpoint's vocabulary; 0 for a model of images. */
export function vocabSizeOf(path: string): number {
  const { source, config } = openModel(path);
  using _ = source;
  return Number(config.vocab_size ?? 0);
}

/** Returns the task of a checkpoint, and the labels of the head that it has or would get. */
export function headOf(path: string): TaskHead {
  const { source, config, family } = openModel(path);
  using _ = source;
  return taskOf(family, config, {});
}

/** Opens a model and returns its config and the list of its weights, none of which is read. */
export function openModel(path: string): {
  source: WeightSource;
  config: Record<string, unknown>;
  family: Family;
  stored: Map<string, StoredWeight>;
} {
  if (!existsSync(path))
    throw new GraftError('input', 'the model was not found: there is no such file or directory', { place: path });
  try {
    return statSync(path).isDirectory() ? openDirectory(path) : openGgufModel(path);
  } catch (error) {
    throw withPlace(error, path);
  }
}

/** Returns the error with the config's file as its place, where it has none. */
function withPlace(error: unknown, path: string): unknown {
  if (!(error instanceof GraftError) || error.place) return error;
  return error.at(statSync(path).isDirectory() ? join(path, 'config.json') : path);
}

function openDirectory(path: string) {
  const config = readJsonObject(join(path, 'config.json'));
  const type = String(config.model_type);
  const family = families.find((f) => f.types.includes(type));
  if (!family) {
    throw new GraftError('input', `model_type '${type}' is not supported`, {
      place: join(path, 'config.json'),
      hint: `Supported are ${families.flatMap((f) => f.types).join(', ')}`,
    });
  }
  const { source, integers } = openQuantized(path, config);
  // Checkpoints converted from TensorFlow, bert-base-uncased among them, have TensorFlow's names of a norm's tensors.
  const key = (name: string) =>
    name.replace(/LayerNorm\.gamma$/, 'LayerNorm.weight').replace(/LayerNorm\.beta$/, 'LayerNorm.bias');
  const stored = new Map(
    [...source.entries].map(([name, entry]) => [
      key(name),
      { entry, interleavedHeads: undefined, integers: integers.get(name) },
    ]),
  );
  return { source, config, family, stored };
}

/** Opens the weights of a directory; integers look like blocks. */
function openQuantized(path: string, config: Record<string, unknown>): ReturnType<typeof withIntegers> {
  const source = openModelWeights(path);
  try {
    requireReadableWeights(config, join(path, 'config.json'), source.entries.keys());
    return withIntegers(source, config);
  } catch (cause) {
    source[Symbol.dispose]();
    throw cause;
  }
}

function openGgufModel(path: string) {
  const source = openGguf(path);
  if (source.metadata.get('general.type') === 'adapter') {
    source[Symbol.dispose]();
    throw new GraftError('input', 'this GGUF file is an adapter, and not a model', {
      place: path,
      hint: 'Name its base as --model, and the file as --adapter',
    });
  }
  const architecture = String(source.metadata.get('general.architecture'));
  const family = families.find((f) => f.gguf?.architectures.includes(architecture));
  if (!family?.gguf) {
    source[Symbol.dispose]();
    throw new GraftError('input', `the GGUF architecture '${architecture}' is not supported`, {
      place: path,
      hint: `Supported are ${families.flatMap((f) => f.gguf?.architectures ?? []).join(', ')}`,
    });
  }
  try {
    const config = family.gguf.config(source);
    const names = family.gguf.names(source.metadata);
    const stored = new Map<string, StoredWeight>();
    for (const [name, entry] of source.entries) {
      const key = names.key(name);
      if (key) stored.set(key, { entry, interleavedHeads: names.interleavedHeads(name) });
    }
    return { source, config, family, stored };
  } catch (cause) {
    source[Symbol.dispose]();
    throw cause;
  }
}
