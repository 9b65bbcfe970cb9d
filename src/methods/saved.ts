import { GraftError, nearest } from '../base/index.ts';
import { Embedding, Linear, type Model, type Module, namedModules, RmsNorm, replaceModule } from '../nn/index.ts';
import { detachFromScopes, noGrad, ops, type Tensor } from '../tensor/index.ts';

/** Parts of the base that are trained on copies, so that the base itself stays as it is. */
export interface Copies {
  readonly parameters: ReadonlyMap<string, Tensor>;
  use(on: boolean): void;
  dispose(): void;
}

const copyOf = (tensor: Tensor): Tensor => {
  const copy = detachFromScopes(noGrad(() => ops.clone(tensor)));
  copy.requiresGrad = true;
  return copy;
};

/** A trainable twin of a module, and its parameters by field. */
function twin(module: Module, path: string): { module: Module; fields: Map<string, Tensor> } {
  const fields = new Map<string, Tensor>();
  const copied = (field: string, tensor: Tensor) => {
    const copy = copyOf(tensor);
    fields.set(field, copy);
    return copy;
  };
  if (module instanceof Linear) {
    const weight = copied(
      'weight',
      noGrad(() => module.denseWeight()),
    );
    const bias = module.bias && copied('bias', module.bias);
    return { module: new Linear(module.kernels, weight, -1, module.inFeatures, bias), fields };
  }
  if (module instanceof Embedding) {
    return {
      module: new Embedding(
        copied(
          'weight',
          noGrad(() => module.denseWeight()),
        ),
        -1,
        module.width,
      ),
      fields,
    };
  }
  if (module instanceof RmsNorm) {
    return { module: new RmsNorm(module.kernels, copied('weight', module.weight), module.eps), fields };
  }
  throw new GraftError('usage', `modules_to_save names '${path}', which has no weights of its own`, {
    place: 'modules_to_save',
    mend: 'Name the layers inside it',
  });
}

/**
 * PEFT's `modules_to_save`: every module whose path ends in one of `names` is trained and saved whole. Of tied weights
 * only the named one changes.
 * @throws GraftError 'usage' for a name that fits no module
 */
export function saveModules(model: Model, names: readonly string[]): Copies {
  const modules = [...namedModules(model.root)];
  const parameters = new Map<string, Tensor>();
  const swaps: { path: string; original: Module; copy: Module }[] = [];
  for (const name of names) {
    const hits = modules.filter(([path]) => path.endsWith(name));
    if (hits.length === 0) {
      const near = nearest(
        name,
        modules.map(([path]) => path.split('.').at(-1)!),
      );
      throw new GraftError('usage', `modules_to_save names '${name}', and no module's path ends so`, {
        place: 'modules_to_save',
        ...(near && { mend: `Did you mean '${near}'?` }),
      });
    }
    for (const [path, original] of hits) {
      const { module: copy, fields } = twin(original, path);
      swaps.push({ path, original, copy });
      for (const [field, tensor] of fields) parameters.set(`${path}.${field}`, tensor);
    }
  }
  const use = (on: boolean) => {
    for (const { path, original, copy } of swaps) replaceModule(model.root, path, on ? copy : original);
  };
  use(true);
  return { parameters, use, dispose: () => dispose(parameters, use) };
}

/** The layer under whatever adapters stand on it. */
function plain(module: Module): Module {
  let at: Module = module;
  while ('base_layer' in at) at = at.base_layer as Module;
  return at;
}

/**
 * The biases of the modules that `trained` picks, as trainable copies.
 * @param wrapped modules that get a wrapper: PEFT puts `base_layer.` into their keys
 */
export function trainBiases(
  model: Model,
  trained: (path: string) => boolean,
  wrapped: (path: string) => boolean,
): Copies {
  const parameters = new Map<string, Tensor>();
  const swaps: { module: Linear; original: Tensor; copy: Tensor }[] = [];
  for (const [path, outer] of namedModules(model.root)) {
    const module = plain(outer);
    if (!(module instanceof Linear) || !module.bias || !trained(path)) continue;
    const copy = copyOf(module.bias);
    parameters.set(wrapped(path) ? `${path}.base_layer.bias` : `${path}.bias`, copy);
    swaps.push({ module, original: module.bias, copy });
  }
  const use = (on: boolean) => {
    for (const { module, original, copy } of swaps) module.bias = on ? copy : original;
  };
  use(true);
  return { parameters, use, dispose: () => dispose(parameters, use) };
}

function dispose(parameters: ReadonlyMap<string, Tensor>, use: (on: boolean) => void): void {
  use(false);
  for (const tensor of parameters.values()) tensor.dispose();
}
