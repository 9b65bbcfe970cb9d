import { GraftError, nearest } from '../base/index.ts';
import { Tensor } from '../tensor/index.ts';

/**
 * A part of a model. Its fields are named as in the checkpoint, so that the path of a module (`layers.0.mlp`), the
 * property that holds it and the prefix of its keys are one and the same. Fields that hold modules, arrays of modules
 * or tensors are found by walking; everything else is the module's own business.
 */
export abstract class Module {
  /** Fields that the checkpoint does not know: left out of the walk (a wrapper's inner module under another name). */
  hidden?: ReadonlySet<string>;
}

const join = (path: string, key: string | number) => (path ? `${path}.${key}` : String(key));

function* children(module: Module | readonly unknown[]): Generator<[string, unknown]> {
  for (const [key, value] of Object.entries(module)) {
    if (module instanceof Module && module.hidden?.has(key)) continue;
    yield [key, value];
  }
}

/** Every module below and including `root`, with its path, in the order of the fields. */
export function* namedModules(root: Module | readonly unknown[], path = ''): Generator<[string, Module]> {
  if (root instanceof Module) yield [path, root];
  for (const [key, value] of children(root)) {
    if (value instanceof Module || Array.isArray(value)) yield* namedModules(value, join(path, key));
  }
}

/** Every tensor that a module holds as a field, with its full key. Two keys may name one tensor (tied weights). */
export function* namedTensors(root: Module): Generator<[string, Tensor]> {
  for (const [path, module] of namedModules(root)) {
    for (const [key, value] of children(module)) if (value instanceof Tensor) yield [join(path, key), value];
  }
}

function step(at: unknown, key: string): unknown {
  return typeof at === 'object' && at !== null ? (at as Record<string, unknown>)[key] : undefined;
}

/** The module at `path`. @throws GraftError 'usage' with the nearest path that exists */
export function moduleAt(root: Module, path: string): Module {
  const found = path === '' ? root : path.split('.').reduce<unknown>(step, root);
  if (found instanceof Module) return found;
  const near = nearest(
    path,
    [...namedModules(root)].map(([p]) => p),
  );
  throw new GraftError('usage', `the model has no module '${path}'`, near ? { hint: `Did you mean '${near}'?` } : {});
}

/** Puts `module` at `path` and returns what was there. */
export function replaceModule(root: Module, path: string, module: Module): Module {
  const before = moduleAt(root, path);
  const keys = path.split('.');
  const last = keys.pop()!;
  (keys.reduce<unknown>(step, root) as Record<string, unknown>)[last] = module;
  return before;
}

/** Bytes that the tensors below `roots` take in memory, tied and shared ones once. */
export function tensorBytes(...roots: readonly Module[]): number {
  const tensors = roots.flatMap((root) => [...namedTensors(root)]);
  const sizes = new Map(tensors.map(([, tensor]) => [tensor.id, tensor.nbytes]));
  return [...sizes.values()].reduce((sum, size) => sum + size, 0);
}

/** A module that stands in the place of another and holds it. */
type Wrapping = Module & { base_layer: Module };

const isWrapping = (module: Module): module is Wrapping => 'base_layer' in module;

/** The layer under whatever wrappers stand before it. */
export function unwrapped(module: Module): Module {
  return isWrapping(module) ? unwrapped(module.base_layer) : module;
}

/** Puts `module` at `path`, under the wrappers that stand there. */
export function replaceUnwrapped(root: Module, path: string, module: Module): void {
  const outer = moduleAt(root, path);
  if (!isWrapping(outer)) {
    replaceModule(root, path, module);
    return;
  }
  let last = outer;
  while (isWrapping(last.base_layer)) last = last.base_layer;
  last.base_layer = module;
}
