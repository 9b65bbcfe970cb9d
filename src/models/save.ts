import { statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import { writeDirectory, writeSafetensors } from '../io/index.ts';
import { Embedding, Linear, type Model, type Module, namedModules } from '../nn/index.ts';
import { type DType, ops, scoped, Tensor } from '../tensor/index.ts';
import { copyCompanions } from './companion-files.ts';

/**
 * Writes the model as a Hugging Face directory that transformers loads: config.json, model.safetensors and, where `source` is
 * a directory, what stands beside its weights: tokenizer, chat templates, preprocessing, pooling, code, licence.
 * @param extra contents of more files by name (a tokenizer converted from a GGUF file)
 * @param writeMore writes further files into the directory
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
  writeMore: (draft: string) => void = () => {},
): readonly string[] {
  const config = configOf(model, dtype);
  let left: readonly string[] = [];
  writeDirectory(dir, (draft) => {
    writeFileSync(join(draft, 'config.json'), JSON.stringify(config, null, 2));
    writeSafetensors(join(draft, 'model.safetensors'), denseWeights(model, dtype), { format: 'pt' });
    if (statSync(source).isDirectory()) left = copyCompanions(source, draft).left;
    for (const [name, text] of Object.entries(extra)) writeFileSync(join(draft, name), text);
    writeMore(draft);
  });
  return left;
}

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
interface StoredTensor {
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
function* storedTensors(model: Model): Generator<StoredTensor> {
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

/** Yields every weight, dense, under its key; tied ones once. */
function* denseWeights(model: Model, dtype: DType) {
  const seen = new Set<Tensor>();
  for (const { name, tensor, module, field } of storedTensors(model)) {
    if (seen.has(tensor)) continue;
    seen.add(tensor);
    if ((module instanceof Linear || module instanceof Embedding) && field === 'weight') {
      const shape = [tensor.size(0), module instanceof Linear ? module.inFeatures : module.width];
      if (module instanceof Linear && module.transposed) {
        const transposed = () => ops.contiguous(ops.t(module.denseWeight()));
        yield { name, dtype, shape: shape.reverse(), bytes: () => convertedBytes(name, transposed, dtype) };
      } else yield { name, dtype, shape, bytes: () => convertedBytes(name, () => module.denseWeight(), dtype) };
    } else {
      yield { name, dtype, shape: tensor.shape, bytes: () => convertedBytes(name, () => tensor, dtype) };
    }
  }
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
function convertedBytes(name: string, make: () => Tensor, dtype: DType): Uint8Array {
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
