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
import { noGrad, ops, scope, Tensor } from '../../tensor/index.ts';
import { trainable } from './parameter-init.ts';
import { inTrainedHead } from './targets.ts';

/** Parts of the base that are trained on copies, so that the base itself stays as it is. */
export interface TrainedCopies {
  readonly parameters: ReadonlyMap<string, Tensor>;
  use(on: boolean): void;
  dispose(): void;
}

const copyOf = (tensor: Tensor): Tensor => trainable(() => ops.clone(tensor));

/** Where several adapters may each have a copy. The one that was switched on last is at work. */
interface Place<T> {
  readonly original: T;
  on: T[];
  put(value: T): void;
}

const modulePlaces = new WeakMap<Module, Place<Module>>();
const biasPlaces = new WeakMap<Module, Place<Tensor>>();

const hasBias = (module: Module): module is Module & { bias: Tensor } =>
  'bias' in module && module.bias instanceof Tensor;

function use<T>(place: Place<T>, copy: T, on: boolean): void {
  place.on = place.on.filter((other) => other !== copy);
  if (on) place.on.push(copy);
  place.put(place.on.at(-1) ?? place.original);
}

type WithWeights = Linear | Embedding | RmsNorm | LayerNorm;

const hasWeights = (module: Module): module is WithWeights =>
  module instanceof Linear || module instanceof Embedding || module instanceof RmsNorm || module instanceof LayerNorm;

/** A trainable twin of a module, and its parameters by field. */
function twin(module: WithWeights): { module: Module; fields: Map<string, Tensor> } {
  const fields = new Map<string, Tensor>();
  const copied = (field: string, tensor: Tensor) => {
    const copy = copyOf(tensor);
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

export interface SaveModulesOptions {
  /** Embeddings and head that share a table, and are to share its copy. */
  readonly ties?: { readonly embeddings: string; readonly head: string } | undefined;
  /** The task's head too, which methods leave out: it is trained beside every one. */
  readonly head?: boolean;
}

/**
 * PEFT's `modules_to_save`: every module whose path ends in one of `names` is trained and saved whole, with all inside it. Of tied weights
 * only the named one changes.
 * @throws GraftError 'usage' for a name that fits no module
 */
export function saveModules(
  model: Model,
  names: readonly string[],
  { ties, head = false }: SaveModulesOptions = {},
): TrainedCopies {
  const trained = head ? () => false : inTrainedHead(model);
  const modules = [...namedModules(model.root)];
  const hits = new Map<string, Module>();
  for (const name of names) {
    const found = modules.filter(([path]) => path.endsWith(name));
    if (found.length === 0) {
      const near = nearest(
        name,
        modules.map(([path]) => path.split('.').at(-1)!),
      );
      throw new GraftError('usage', `modules_to_save names '${name}', and no module's path ends so`, {
        place: 'modules_to_save',
        ...(near && { hint: `Did you mean '${near}'?` }),
      });
    }
    for (const [path, outer] of found) {
      if (trained(path)) continue;
      if (!hasWeights(unwrapped(outer))) {
        const inside = modules.filter(([below, m]) => below.startsWith(`${path}.`) && hasWeights(unwrapped(m)));
        for (const [below, m] of inside) hits.set(below, unwrapped(m));
        if (inside.length > 0) continue;
        throw new GraftError('usage', `modules_to_save names '${path}', which has no weights of its own`, {
          place: 'modules_to_save',
          hint: 'Name the layers inside it',
        });
      }
      hits.set(path, unwrapped(outer));
    }
  }
  const shared = ties && [ties.embeddings, ties.head].some((path) => hits.has(path)) ? ties : undefined;
  if (shared) {
    hits.delete(shared.head);
    hits.set(shared.embeddings, unwrapped(moduleAt(model.root, shared.embeddings)));
  }
  const parameters = new Map<string, Tensor>();
  const swaps: { place: Place<Module>; copy: Module }[] = [];
  const swap = (path: string, current: Module, twinOf: (original: WithWeights) => Module) => {
    const place = modulePlaces.get(current) ?? {
      original: current,
      on: [],
      put: (module) => replaceUnwrapped(model.root, path, module),
    };
    const copy = twinOf(place.original as WithWeights);
    for (const module of [place.original, copy]) modulePlaces.set(module, place);
    swaps.push({ place, copy });
  };
  for (const [path, current] of hits) {
    swap(path, current, (original) => {
      const { module, fields } = twin(original);
      for (const [field, tensor] of fields) parameters.set(`${path}.${field}`, tensor);
      return module;
    });
  }
  if (shared) {
    const head = unwrapped(moduleAt(model.root, shared.head)) as Linear;
    const weight = parameters.get(`${shared.embeddings}.weight`)!;
    swap(shared.head, head, () => new Linear(head.kernels, weight, -1, head.inFeatures));
  }
  return switched(parameters, (on) => {
    for (const { place, copy } of swaps) use(place, copy, on);
  });
}

/**
 * The biases of the modules that `trained` picks, as trainable copies; not the task's head's, which is trained whole.
 * @param wrapped modules that get a wrapper: PEFT puts `base_layer.` into their keys
 */
export function trainBiases(
  model: Model,
  trained: (path: string) => boolean,
  wrapped: (path: string) => boolean,
): TrainedCopies {
  const parameters = new Map<string, Tensor>();
  const swaps: { place: Place<Tensor>; copy: Tensor }[] = [];
  const inHead = inTrainedHead(model);
  for (const [path, outer] of namedModules(model.root)) {
    const module = unwrapped(outer);
    if (!hasBias(module) || !trained(path) || inHead(path)) continue;
    const place = biasPlaces.get(module) ?? {
      original: module.bias,
      on: [],
      put: (bias) => {
        module.bias = bias;
      },
    };
    biasPlaces.set(module, place);
    const copy = copyOf(place.original);
    parameters.set(wrapped(path) ? `${path}.base_layer.bias` : `${path}.bias`, copy);
    swaps.push({ place, copy });
  }
  return switched(parameters, (on) => {
    for (const { place, copy } of swaps) use(place, copy, on);
  });
}

/** Switches the copies on; when they are disposed, what was there before is back. */
function switched(parameters: ReadonlyMap<string, Tensor>, use: (on: boolean) => void): TrainedCopies {
  use(true);
  return {
    parameters,
    use,
    dispose() {
      use(false);
      for (const tensor of parameters.values()) tensor.dispose();
    },
  };
}
