import { GraftError, nearest } from '../base/index.ts';
import { Tensor } from '../tensor/index.ts';

/**
 * A part of a model. Its fields are named as in the checkpoint, so that the path of a module (`layers.0.mlp`) is also the
 * property that holds it and the prefix of its keys. Only fields that hold modules, arrays of modules or tensors are part
 * of the tree.
 */
export abstract class Module {
  /** Fields that are not in the checkpoint and are left out of the tree (a wrapper's inner module under another name). */
  hidden?: ReadonlySet<string>;
}

const join = (path: string, key: string | number) => (path ? `${path}.${key}` : String(key));

function* children(module: Module | readonly unknown[]): Generator<[string, unknown]> {
  for (const [key, value] of Object.entries(module)) {
    if (module instanceof Module && module.hidden?.has(key)) continue;
    yield [key, value];
  }
}

/** Yields every module of the tree, `root` included, with its path, in the order of the fields. */
export function* namedModules(root: Module | readonly unknown[], path = ''): Generator<[string, Module]> {
  if (root instanceof Module) yield [path, root];
  for (const [key, value] of children(root)) {
    if (value instanceof Module || Array.isArray(value)) yield* namedModules(value, join(path, key));
  }
}

/** Yields every tensor of the tree with its full key. Two keys may name one tensor (tied weights). */
export function* namedTensors(root: Module): Generator<[string, Tensor]> {
  for (const [path, module] of namedModules(root)) {
    for (const [key, value] of children(module)) if (value instanceof Tensor) yield [join(path, key), value];
  }
}

/** Returns a field of a module, or an element of an array of modules. */
function childOf(parent: unknown, key: string): unknown {
  return typeof parent === 'object' && parent !== null ? (parent as Record<string, unknown>)[key] : undefined;
}

/** Returns the module at `path`. @throws GraftError 'usage' with the nearest path, where there is none */
export function moduleAt(root: Module, path: string): Module {
  const module = path === '' ? root : path.split('.').reduce<unknown>(childOf, root);
  if (module instanceof Module) return module;
  const near = nearest(
    path,
    [...namedModules(root)].map(([p]) => p),
  );
  throw new GraftError('usage', `the model has no module '${path}'`, near ? { hint: `Did you mean '${near}'?` } : {});
}

/** Puts `module` at `path` and returns the one that it replaces. */
export function replaceModule(root: Module, path: string, module: Module): Module {
  const replaced = moduleAt(root, path);
  const keys = path.split('.');
  const last = keys.pop()!;
  (keys.reduce<unknown>(childOf, root) as Record<string, unknown>)[last] = module;
  return replaced;
}

/** Yields every tensor of the tree, those inside wrappers too, with the path of its module. */
export function* heldTensors(root: Module): Generator<[path: string, tensor: Tensor]> {
  for (const [path, outer] of namedModules(root)) {
    for (let module: Module | undefined = outer; module; module = isWrapping(module) ? module.base_layer : undefined) {
      for (const value of Object.values(module)) if (value instanceof Tensor) yield [path, value];
    }
  }
}

/** Returns the bytes that the tensors below `roots` take in memory, tied and shared ones once, those inside wrappers too. */
export function tensorBytes(...roots: readonly Module[]): number {
  const sizes = new Map(roots.flatMap((root) => [...heldTensors(root)].map(([, { id, nbytes }]) => [id, nbytes])));
  return [...sizes.values()].reduce((sum, size) => sum + size, 0);
}

/** A wrapper: a module in the place of another, which it holds. */
type Wrapping = Module & { base_layer: Module };

const isWrapping = (module: Module): module is Wrapping => 'base_layer' in module;

/** Returns the layer inside all wrappers. */
export function unwrapped(module: Module): Module {
  return isWrapping(module) ? unwrapped(module.base_layer) : module;
}

/** Puts `module` at `path`, inside the wrappers that are there. */
export function replaceUnwrapped(root: Module, path: string, module: Module): void {
  const outer = moduleAt(root, path);
  if (!isWrapping(outer)) {
    replaceModule(root, path, module);
    return;
  }
  let innermost = outer;
  while (isWrapping(innermost.base_layer)) innermost = innermost.base_layer;
  innermost.base_layer = module;
}
