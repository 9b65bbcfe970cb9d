/** PEFT's `modules_to_save`: whole modules that are trained on copies and saved with the adapter. */
import { GraftError, nearest } from '../../base/index.ts';
import {
  Embedding,
  LayerNorm,
  Linear,
  type Model,
  type Module,
  moduleAt,
  namedModules,
  RmsNorm,
  replaceUnwrapped,
  unwrapped,
} from '../../nn/index.ts';
import { noGrad, ops, scope, type Tensor } from '../../tensor/index.ts';
import { inTrainedHead } from './candidates.ts';
import { type CopiedModule, type Slot, type SlotCopy, switchedCopies, type TrainedCopies } from './copies.ts';
import { requireOwnWeight } from './folds.ts';
import { trainable } from './parameter-init.ts';

type WithWeights = Linear | Embedding | RmsNorm | LayerNorm;

const hasWeights = (module: Module): module is WithWeights =>
  module instanceof Linear || module instanceof Embedding || module instanceof RmsNorm || module instanceof LayerNorm;

const slots = new WeakMap<Module, Slot<Module>>();

/** A trainable copy of a module, dense, and its parameters by field. */
function copyOf(module: WithWeights): { module: Module; fields: Map<string, Tensor> } {
  const fields = new Map<string, Tensor>();
  const copied = (field: string, tensor: Tensor) => {
    const copy = trainable(() => ops.clone(tensor));
    fields.set(field, copy);
    return copy;
  };
  if (module instanceof RmsNorm) {
    return { module: new RmsNorm(module.kernels, copied('weight', module.weight), module.eps), fields };
  }
  if (module instanceof LayerNorm) {
    const norm = new LayerNorm(copied('weight', module.weight), copied('bias', module.bias), module.eps);
    return { module: norm, fields };
  }
  using _ = scope();
  const dense = noGrad(() => module.denseWeight());
  const weight = copied('weight', dense);
  if (module instanceof Embedding) return { module: new Embedding(weight, -1, module.width), fields };
  const bias = module.bias && copied('bias', module.bias);
  const linear = new Linear(module.kernels, weight, -1, module.inFeatures, bias);
  linear.transposed = module.transposed;
  return { module: linear, fields };
}

/** Returns the modules with weights that `names` match, by path. @throws GraftError 'usage' for a name that matches none */
function modulesNamed(
  model: Model,
  names: readonly string[],
  isLeftOut: (path: string) => boolean,
): Map<string, Module> {
  const all = [...namedModules(model.root)];
  const selected = new Map<string, Module>();
  for (const name of names) {
    const matches = all.filter(([path]) => path.endsWith(name));
    if (matches.length === 0) {
      const near = nearest(
        name,
        all.map(([path]) => path.split('.').at(-1)!),
      );
      throw new GraftError('usage', `modules_to_save names '${name}', which matches no module`, {
        place: 'modules_to_save',
        ...(near && { hint: `Did you mean '${near}'?` }),
      });
    }
    for (const [path, module] of matches) {
      if (isLeftOut(path)) continue;
      if (hasWeights(unwrapped(module))) {
        selected.set(path, unwrapped(module));
        continue;
      }
      const below = all.filter(([inner, m]) => inner.startsWith(`${path}.`) && hasWeights(unwrapped(m)));
      if (below.length === 0) {
        throw new GraftError('usage', `modules_to_save names '${path}', which has no weights`, {
          place: 'modules_to_save',
          hint: 'Name modules that have weights',
        });
      }
      for (const [inner, m] of below) selected.set(inner, unwrapped(m));
    }
  }
  return selected;
}

export interface SaveModulesOptions {
  /** Paths of an embedding and a head that share a table, and are to share its copy. */
  readonly ties?: { readonly embeddings: string; readonly head: string } | undefined;
  /** True: the task's head is copied too. Methods leave it out, since it is trained under every method. */
  readonly head?: boolean;
}

/**
 * Returns trained copies of every module whose path ends in one of `names`, with all modules inside it. Of tied weights only the
 * named module changes, unless `ties` says otherwise.
 * @throws GraftError 'usage' for a name that matches no module
 */
export function saveModules(
  model: Model,
  names: readonly string[],
  { ties, head = false }: SaveModulesOptions = {},
): TrainedCopies {
  const modules = modulesNamed(model, names, head ? () => false : inTrainedHead(model));
  const shared = ties && [ties.embeddings, ties.head].some((path) => modules.has(path)) ? ties : undefined;
  if (shared) {
    modules.delete(shared.head);
    modules.set(shared.embeddings, unwrapped(moduleAt(model.root, shared.embeddings)));
  }
  const parameters = new Map<string, Tensor>();
  const copies: SlotCopy<Module>[] = [];
  const copied: CopiedModule[] = [];
  const add = (path: string, current: Module, make: (original: WithWeights) => Module) => {
    const slot = slots.get(current) ?? {
      original: current,
      active: [],
      put: (module) => replaceUnwrapped(model.root, path, module),
    };
    const copy = make(slot.original as WithWeights);
    for (const module of [slot.original, copy]) slots.set(module, slot);
    copies.push({ slot, copy });
    copied.push({ path, original: slot.original, copy });
  };
  for (const [path, current] of modules) {
    requireOwnWeight(current, path);
    add(path, current, (original) => {
      const { module, fields } = copyOf(original);
      for (const [field, tensor] of fields) parameters.set(`${path}.${field}`, tensor);
      return module;
    });
  }
  if (shared) {
    const layer = unwrapped(moduleAt(model.root, shared.head)) as Linear;
    const weight = parameters.get(`${shared.embeddings}.weight`)!;
    add(shared.head, layer, () => new Linear(layer.kernels, weight, -1, layer.inFeatures));
  }
  const sharedHead = shared ? [`${shared.head}.weight`] : [];
  return switchedCopies(parameters, copies, [...parameters.keys(), ...sharedHead], { modules: copied });
}
