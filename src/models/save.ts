import { statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import { type TensorToWrite, writeDirectory, writeSafetensors } from '../io/index.ts';
import { Embedding, Linear, type Model, type Module, namedModules } from '../nn/index.ts';
import { isIntegerFormat, type Quantization, type WeightFormat } from '../quant/index.ts';
import { type DType, dtypes, ops, scoped, Tensor } from '../tensor/index.ts';
import { copyCompanions } from './companion-files.ts';
import type { FloatFormat } from './export-choice.ts';
import type { FormatOf, WrittenFormat } from './export-formats.ts';
import { integerConfig, integerTensors } from './integer-layout.ts';

/**
 * Writes the model as a Hugging Face directory that transformers loads: config.json, model.safetensors and, where `source` is
 * a directory, what stands beside its weights: tokenizer, chat templates, preprocessing, pooling, code, licence.
 * @param extra contents of more files by name (a tokenizer converted from a GGUF file)
 * @param written what is written in another way: matrices as integers or in another element type, further files
 * @returns the names of files and folders of `source` that are not copied: its model card, weights in other formats
 * @throws GraftError 'state' where an adapter is enabled but not merged; 'numeric' for a weight that `dtype` cannot hold;
 *   'environment' for a full disk or missing rights
 */
export function saveModel(
  model: Model,
  dir: string,
  source: string,
  dtype: DType = 'float32',
  extra: Readonly<Record<string, string>> = {},
  written: WrittenOptions = {},
): readonly string[] {
  const { present = () => {}, formatOf = () => undefined } = written;
  const tensors = [...denseWeights(model, dtype, formatOf, present)];
  const config = { ...configOf(model, dtype), ...quantizationOf(model, written) };
  let left: readonly string[] = [];
  writeDirectory(dir, (draft) => {
    writeFileSync(join(draft, 'config.json'), JSON.stringify(config, null, 2));
    writeSafetensors(join(draft, 'model.safetensors'), withProgress(tensors, written.progress), { format: 'pt' });
    if (statSync(source).isDirectory()) left = copyCompanions(source, draft).left;
    for (const [name, text] of Object.entries(extra)) writeFileSync(join(draft, name), text);
    written.writeMore?.(draft);
  });
  return left;
}

/** How matrices are written, and what is told about it. */
export interface WrittenOptions {
  readonly formatOf?: FormatOf;
  /** Is called before each tensor is written; it may throw to stop. */
  readonly progress?: (written: number, total: number) => void;
  /** Is called before a tensor of the model is read, which may be elsewhere until then. */
  readonly present?: ((tensor: Tensor) => void) | undefined;
  /** Writes further files into the directory. */
  readonly writeMore?: (draft: string) => void;
}

function withProgress(tensors: readonly TensorToWrite[], progress: WrittenOptions['progress']): TensorToWrite[] {
  let written = 0;
  return tensors.map((tensor) => ({
    ...tensor,
    bytes() {
      progress?.(written++, tensors.length);
      return typeof tensor.bytes === 'function' ? tensor.bytes() : tensor.bytes;
    },
  }));
}

/** Returns `quantization_config`, where some matrices are written as integers. */
function quantizationOf(model: Model, { formatOf }: WrittenOptions): Record<string, unknown> {
  const seen = new Set<Tensor>();
  const quantized = new Map<string, Quantization>();
  const linear: string[] = [];
  for (const { path, module, field, tensor, name } of storedTensors(model)) {
    if (field !== 'weight' || !(module instanceof Linear || module instanceof Embedding)) continue;
    const key = name.slice(0, -'.weight'.length);
    if (module instanceof Linear) linear.push(key);
    const written = formatOf?.(path);
    if (!seen.has(tensor) && written && isIntegers(written)) quantized.set(key, written);
    seen.add(tensor);
  }
  return quantized.size > 0 ? { quantization_config: integerConfig(quantized, linear) } : {};
}

const isIntegers = (written: WrittenFormat): written is Quantization => isIntegerFormat(written.format as WeightFormat);

/** Fields that describe the weights of the file that was read, and not those that are written. */
const ofTheFile = ['quantization_config', 'compression_config', '_pre_quantization_dtype'];

/** Returns the `config.json` of a checkpoint with this task's head. */
function configOf(model: Model, dtype: DType): Record<string, unknown> {
  const { task, architecture } = model;
  const config = Object.fromEntries(Object.entries(model.config).filter(([, value]) => value !== undefined));
  config.architectures = [architecture];
  for (const field of ofTheFile) delete config[field];
  config.dtype = dtype;
  if ('torch_dtype' in config) config.torch_dtype = dtype; // transformers 4 reads only this
  if (config.tie_word_embeddings && task.name === 'causal-lm') config.tie_word_embeddings = isHeadTied(model);
  // These may describe another task's head. Without problem_type, one label is regression and several are classes.
  for (const field of ['id2label', 'label2id', 'num_labels', 'problem_type']) delete config[field];
  if (task.labels.length === 0 || task.name === 'question-answering') return config;
  if (task.multiLabel) config.problem_type = 'multi_label_classification';
  config.id2label = Object.fromEntries(task.labels.map((label, i) => [i, label]));
  config.label2id = Object.fromEntries(task.labels.map((label, i) => [label, i]));
  return config;
}

/** A tensor of the base. */
export interface StoredTensor {
  /** Its key in the file. */
  readonly name: string;
  /** The path of its module in the model. */
  readonly path: string;
  readonly module: Module;
  readonly field: string;
  readonly tensor: Tensor;
}

/**
 * Yields every tensor of the base. Wrappers of merged or disabled adapters are skipped.
 * @throws GraftError 'state' where an adapter is enabled but not merged into the weights
 */
export function* storedTensors(model: Model): Generator<StoredTensor> {
  if (model.ports.anyEnabled) {
    throw new GraftError(
      'state',
      'an enabled adapter changes the outputs of layers, which the saved weights would not include',
      {
        hint: 'Merge or detach it first',
      },
    );
  }
  for (const [path, outer] of namedModules(model.root)) {
    const module = isLayer(outer) ? outer.plain() : outer;
    if (!module) {
      throw new GraftError('state', `an enabled adapter on '${path}' is not merged into the weights`, {
        hint: 'Merge or detach it first',
      });
    }
    for (const [field, tensor] of Object.entries(module)) {
      const key = path === '' ? field : `${path}.${field}`;
      if (tensor instanceof Tensor) yield { name: model.fileKey?.(key) ?? key, path, module, field, tensor };
    }
  }
}

const isLayer = (module: Module): module is Module & { plain(): Linear | Embedding | undefined } => 'plain' in module;

/** Yields every weight under its key, dense unless `formatOf` says integers; tied ones once. */
function* denseWeights(
  model: Model,
  dtype: DType,
  formatOf: FormatOf,
  present: (tensor: Tensor) => void,
): Generator<TensorToWrite> {
  const seen = new Set<Tensor>();
  for (const { name, path, tensor, module, field } of storedTensors(model)) {
    if (seen.has(tensor)) continue;
    seen.add(tensor);
    if (!((module instanceof Linear || module instanceof Embedding) && field === 'weight')) {
      const own = () => {
        present(tensor);
        return tensor;
      };
      yield { name, dtype, shape: tensor.shape, bytes: () => convertedBytes(name, own, dtype) };
      continue;
    }
    const dense = () => {
      present(tensor);
      return module.denseWeight();
    };
    const shape = [tensor.size(0), module instanceof Linear ? module.inFeatures : module.width] as const;
    const written = formatOf(path) ?? { format: dtype as FloatFormat };
    if (isIntegers(written)) {
      const make = () => requireFinite(name, dense());
      yield* integerTensors(name, shape, written, make);
      continue;
    }
    const type = requireFloat(written, name);
    if (module instanceof Linear && module.transposed) {
      const transposed = () => ops.contiguous(ops.t(dense()));
      yield { name, dtype: type, shape: [...shape].reverse(), bytes: () => convertedBytes(name, transposed, type) };
    } else yield { name, dtype: type, shape, bytes: () => convertedBytes(name, dense, type) };
  }
}

/** @throws GraftError 'usage' for a format of GGUF files */
function requireFloat({ format }: WrittenFormat, name: string): FloatFormat {
  if (Object.hasOwn(dtypes, format)) return format as FloatFormat;
  throw new GraftError('usage', `a safetensors directory cannot hold ${name} in the format ${format}`, {
    hint: 'Write a .gguf file, or choose int2 to int8',
  });
}

/** @throws GraftError 'numeric' for a weight with numbers that are not finite, which have no scale */
function requireFinite(name: string, weight: Tensor): Tensor {
  if (Number.isFinite(largestIn(weight))) return weight;
  throw new GraftError('numeric', `${name} holds numbers that are not finite, which integers cannot be`, {
    hint: 'Write float32',
  });
}

/** Whether the head still shares the embeddings' table: an adapter on one of them gives each its own. */
function isHeadTied(model: Model): boolean {
  const { embeddings, head } = model.sites;
  const tables = [...storedTensors(model)].filter(
    ({ path, field }) => field === 'weight' && (path === embeddings || path === head),
  );
  return tables.length === 2 && tables[0]!.tensor === tables[1]!.tensor;
}

/**
 * Returns the bytes of a tensor in element type `dtype`.
 * @throws GraftError 'numeric' where a number is too large for it and would become infinite
 */
export function convertedBytes(name: string, make: () => Tensor, dtype: DType): Uint8Array {
  let bytes: Uint8Array = new Uint8Array();
  scoped(() => {
    const tensor = make();
    const converted = tensor.dtype === dtype ? tensor : ops.toCopy(tensor, { dtype });
    if (converted !== tensor && !Number.isFinite(largestIn(converted)) && Number.isFinite(largestIn(tensor))) {
      const problem = `${name} has numbers up to ${largestIn(tensor).toPrecision(3)}, which ${dtype} cannot hold`;
      throw new GraftError('numeric', problem, { hint: `Write ${dtype === 'float16' ? 'bfloat16 or ' : ''}float32` });
    }
    bytes = converted.bytes();
    return undefined;
  });
  return bytes;
}

const largestIn = (tensor: Tensor): number => ops.amax(ops.abs(tensor)).item();

/**
 * Calls a quantiser.
 * @throws GraftError 'numeric' where the weight has a number that the format cannot hold
 */
export function quantisedOrRefused<T>(name: string, format: string, quantise: () => T): T {
  try {
    return quantise();
  } catch (cause) {
    if (!(cause instanceof GraftError) || cause.kind !== 'engine') throw cause;
    throw new GraftError(
      'numeric',
      `${name} holds a number that is not finite, or too large for the scales of ${format}`,
      {
        hint: 'Write float32',
        cause,
      },
    );
  }
}
