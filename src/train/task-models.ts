/** The models of a run's tasks, with its methods attached: those that are trained, or sketches of them with the same shapes. */
import { GraftError } from '../base/index.ts';
import { currentEngine } from '../engine/index.ts';
import type { ScratchFile } from '../io/index.ts';
import { type AttachedAdapter, trainHead } from '../methods/index.ts';
import { type HeadOptions, type LaterWeights, loadModels } from '../models/index.ts';
import { heldTensors, type Model, namedModules, tensorBytes } from '../nn/index.ts';
import { isAbsent, type Tensor } from '../tensor/index.ts';
import { attach } from './attach.ts';
import type { Recipe } from './recipe.ts';
import { tensorsByBlock } from './tensors-by-block.ts';

export interface TaskModels extends Disposable {
  /** A model for each task; tasks without labels share one. */
  readonly models: readonly Model[];
  /** The model that the methods are attached to. */
  readonly host: Model;
  readonly adapter: AttachedAdapter;
  /** The parameters of each model's own head by key; empty where the task has none. */
  readonly heads: ReadonlyMap<Model, ReadonlyMap<string, Tensor>>;
  /** All trained parameters, by the keys of a checkpoint. */
  readonly parameters: ReadonlyMap<string, Tensor>;
  /** Bytes of the base's weights as they are held in memory. */
  readonly weightBytes: number;
  /** Whether all weights were read although they could have waited, since a method reads them when it is attached. */
  readonly readsBase: boolean;
  /** Bytes that attaching the methods took. */
  readonly attachedBytes: number;
}

/**
 * Loads the model with a head for each task, and attaches the recipe's methods.
 * @param shapesOnly reads no weights and computes no initial values
 * @param later is given the weights, which are read only where a method needs them to be attached
 * @param offload the weights stay in files, this one besides those of the model
 * @throws GraftError for anything that is wrong with the model or the methods
 */
export function openTaskModels(
  recipe: Recipe,
  modelPath: string,
  tasks: readonly { readonly name: string | undefined; readonly head: HeadOptions }[],
  shapesOnly: boolean,
  later?: LaterWeights,
  offload?: ScratchFile,
): TaskModels {
  using made = new DisposableStack();
  const heads = tasks.map(({ head }) => head);
  const { quantize, train } = recipe;
  const models = loadModels(modelPath, heads, { quantize, seed: train.seed, shapesOnly, offload }, later);
  made.use(models[0]!);
  const host = hostOf(models);
  const weightBytes = tensorBytes(...models.map(({ root }) => root));
  const before = currentEngine().native.memory().bytes;
  const attachAll = () => attachMethods(models, host, tasks, () => attach(host, modelPath, recipe, shapesOnly));
  const { adapter, heads: own, parameters } = made.use(later ? attachedReading(models, later, attachAll) : attachAll());
  if (adapter.parameters.size === 0) {
    throw new GraftError('usage', 'there is nothing to train: every method is frozen', {
      place: 'method',
      hint: 'Remove train: false from one method, or give the recipe a task with a head',
    });
  }
  const attachedBytes = currentEngine().native.memory().bytes - before;
  const readsBase = later !== undefined && ![...later.tensors].some(isAbsent);
  const all = made.move();
  const held = { models, host, adapter, heads: own, parameters };
  return { ...held, weightBytes, readsBase, attachedBytes, [Symbol.dispose]: () => all.dispose() };
}

type Attached = Pick<TaskModels, 'adapter' | 'heads' | 'parameters'> & Disposable;

/** Attaches the methods to their host, and trained copies of their heads to the other models. */
function attachMethods(
  models: readonly Model[],
  host: Model,
  tasks: readonly { readonly name: string | undefined }[],
  attachToHost: () => AttachedAdapter,
): Attached {
  using made = new DisposableStack();
  const adapter = made.use(attachToHost());
  const parameters = new Map(adapter.parameters);
  const heads = new Map<Model, ReadonlyMap<string, Tensor>>([[host, adapter.head]]);
  for (const [i, model] of models.entries()) {
    if (heads.has(model)) continue;
    const head = trainHead(model);
    if (head) made.defer(() => head.dispose());
    heads.set(model, head?.parameters ?? new Map());
    for (const [key, tensor] of heads.get(model)!) parameters.set(`tasks.${tasks[i]!.name}.${key}`, tensor);
  }
  const all = made.move();
  return { adapter, heads, parameters, [Symbol.dispose]: () => all.dispose() };
}

/**
 * Attaches methods to models whose weights are absent: most need shapes only. Some copy a head or embeddings, and some read every layer
 * (DoRA, PiSSA, rounding the base); these weights are then read first.
 */
function attachedReading(models: readonly Model[], later: LaterWeights, attachAll: () => Attached): Attached {
  const outside = tensorsByBlock(models).get(undefined) ?? [];
  const missing = () => [...later.tensors].filter(isAbsent);
  for (const needed of [() => [], () => missing().filter((tensor) => outside.includes(tensor)), missing]) {
    later.fill(needed());
    try {
      const attached = attachAll();
      const held = models.flatMap(({ root }) => [...heldTensors(root)].map(([, tensor]) => tensor));
      const copies = [...attached.parameters.values(), ...held].filter((tensor) => !later.tensors.has(tensor));
      if (!copies.some(isAbsent)) return attached;
      attached[Symbol.dispose]();
    } catch (error) {
      // Whatever is wrong besides is wrong again when the weights are there.
      if (missing().length === 0) throw error;
    }
  }
  throw new GraftError('engine', 'the methods need weights that are not there', { place: 'method' });
}

/**
 * The model that the methods are attached to: the one with every module that the others have. Modules that only it has (BERT's pooler,
 * the projection to the vocabulary) are trained by its task alone.
 * @throws GraftError 'usage' where the tasks' models name the shared layers differently
 */
function hostOf(models: readonly Model[]): Model {
  const [first] = models as [Model];
  const other = models.find(({ sites }) => sites.block !== first.sites.block);
  if (other) {
    const [one, two] = [first, other].map(({ task, sites }) => `${task.name} as ${sites.block}`);
    throw new GraftError(
      'usage',
      `these tasks cannot share an adapter: ${first.family} names its layers differently for ${one} and ${two}`,
      {
        place: 'tasks',
        hint: 'Train them in two runs',
      },
    );
  }
  const size = ({ root, task, sites: { head } }: Model) =>
    [...namedModules(root)].filter(([path]) => task.labels.length === 0 || !path.startsWith(head!)).length;
  return models.reduce((most, model) => (size(model) > size(most) ? model : most));
}
