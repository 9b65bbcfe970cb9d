import { type Binding, onStart } from '../engine/index.ts';

let native: Binding;
onStart((binding) => {
  native = binding;
});

/** What a scope frees: a tensor, with its native handle. */
export interface Owned {
  readonly id: number;
  /** Is called after the handle was freed. */
  retire(): void;
}

/** A scope frees the tensors that are created inside it; see `scope()`. */
export interface Scope extends Disposable {
  /** Moves one or more tensors to the enclosing scope; those of the outermost scope then live until they are disposed. Returns them. */
  keep<T extends Owned | readonly Owned[]>(tensors: T): T;
}

let current: TensorScope | undefined;
let handlesToFree = new Uint32Array(1024);

// Frees tensors outside any scope that the program no longer references.
const unreferenced = new FinalizationRegistry<number>((id) => native.free(Uint32Array.of(id), 1));

class TensorScope implements Scope {
  readonly #parent = current;
  readonly #tensors = new Set<Owned>();

  constructor() {
    current = this;
  }

  add(tensor: Owned): void {
    this.#tensors.add(tensor);
  }

  forget(tensor: Owned): boolean {
    return this.#tensors.delete(tensor);
  }

  get parent(): TensorScope | undefined {
    return this.#parent;
  }

  keep<T extends Owned | readonly Owned[]>(tensors: T): T {
    for (const tensor of (Array.isArray(tensors) ? tensors : [tensors]) as readonly Owned[]) {
      if (!this.#tensors.delete(tensor)) continue; // created outside of this scope: it lives on anyway
      if (this.#parent) this.#parent.add(tensor);
      else unreferenced.register(tensor, tensor.id, tensor);
    }
    return tensors;
  }

  [Symbol.dispose](): void {
    current = this.#parent;
    if (this.#tensors.size > handlesToFree.length) handlesToFree = new Uint32Array(2 * this.#tensors.size);
    let count = 0;
    for (const tensor of this.#tensors) {
      handlesToFree[count++] = tensor.id;
      tensor.retire();
    }
    this.#tensors.clear();
    native.free(handlesToFree, count);
  }
}

/**
 * Opens a scope: `using s = scope()`. When the block ends, every tensor that was created inside it is freed, except those
 * passed to `s.keep(…)`. Scopes nest. They work in synchronous code only: do not `await` inside one.
 */
export function scope(): Scope {
  return new TensorScope();
}

/** Returns `body()`, run in a new scope; the tensors that it returns are kept. */
export function scoped<T extends Owned | readonly Owned[] | undefined | number>(body: () => T): T {
  using s = scope();
  const result = body();
  return typeof result === 'object' ? s.keep(result) : result;
}

/** Adds a new tensor to the current scope. */
export function adopt(tensor: Owned): void {
  if (current) current.add(tensor);
  else unreferenced.register(tensor, tensor.id, tensor);
}

/** Removes `tensor` from its scope, so that it lives until it is disposed: for parameters and caches. Returns it. */
export function detachFromScopes<T extends Owned>(tensor: T): T {
  for (let s = current; s; s = s.parent) {
    if (s.forget(tensor)) {
      unreferenced.register(tensor, tensor.id, tensor);
      break;
    }
  }
  return tensor;
}

/** Gives `tensor` the native handle of `from`, which then counts as disposed, and frees its own. */
export function moveHandle(tensor: Owned & { id: number }, from: Owned): void {
  for (let s = current; s; s = s.parent) if (s.forget(from)) break;
  unreferenced.unregister(from);
  const outlivesScopes = unreferenced.unregister(tensor);
  native.free(Uint32Array.of(tensor.id), 1);
  tensor.id = from.id;
  if (outlivesScopes) unreferenced.register(tensor, tensor.id, tensor);
  from.retire();
}

/** Exchanges the native handles of two tensors. */
export function exchangeHandles(a: Owned & { id: number }, b: Owned & { id: number }): void {
  const outliving = [a, b].filter((tensor) => unreferenced.unregister(tensor));
  [a.id, b.id] = [b.id, a.id];
  for (const tensor of outliving) unreferenced.register(tensor, tensor.id, tensor);
}

/** Frees a tensor that is disposed by hand. */
export function release(tensor: Owned): void {
  for (let s = current; s; s = s.parent) if (s.forget(tensor)) break;
  unreferenced.unregister(tensor);
  native.free(Uint32Array.of(tensor.id), 1);
}
