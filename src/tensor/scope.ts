import { type Binding, onStart } from '../engine/index.ts';

let native: Binding;
onStart((binding) => {
  native = binding;
});

/** What a scope frees: a tensor, known by its native handle. */
export interface Owned {
  readonly id: number;
  /** Told that the handle was freed. */
  retire(): void;
}

/** Lets tensors outlive their scope; see `scope()`. */
export interface Scope extends Disposable {
  /** Hands `tensor` to the scope around this one (or to nobody, at the outermost). Returns it. */
  keep<T extends Owned | readonly Owned[]>(tensor: T): T;
}

let current: TensorScope | undefined;
let buffer = new Uint32Array(1024);

// Frees what the program lost sight of outside any scope; inside one, the scope does it.
const lost = new FinalizationRegistry<number>((id) => native.free(Uint32Array.of(id), 1));

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

  keep<T extends Owned | readonly Owned[]>(kept: T): T {
    for (const tensor of (Array.isArray(kept) ? kept : [kept]) as readonly Owned[]) {
      if (!this.#tensors.delete(tensor)) continue; // made outside: it lives on anyway
      if (this.#parent) this.#parent.add(tensor);
      else lost.register(tensor, tensor.id, tensor);
    }
    return kept;
  }

  [Symbol.dispose](): void {
    current = this.#parent;
    if (this.#tensors.size > buffer.length) buffer = new Uint32Array(2 * this.#tensors.size);
    let count = 0;
    for (const tensor of this.#tensors) {
      buffer[count++] = tensor.id;
      tensor.retire();
    }
    this.#tensors.clear();
    native.free(buffer, count);
  }
}

/**
 * Opens a scope: `using s = scope()`. When the block ends, every tensor made inside it is freed, but for those given to
 * `s.keep(…)`. Scopes nest. They are bound to synchronous code: do not `await` inside one.
 */
export function scope(): Scope {
  return new TensorScope();
}

/** Runs `body` in a scope of its own and keeps what it returns. */
export function scoped<T extends Owned | readonly Owned[] | undefined | number>(body: () => T): T {
  using s = scope();
  const result = body();
  return typeof result === 'object' ? s.keep(result) : result;
}

/** Called by every new tensor. */
export function adopt(tensor: Owned): void {
  if (current) current.add(tensor);
  else lost.register(tensor, tensor.id, tensor);
}

/** Takes `tensor` out of whatever scope holds it: it lives until it is disposed. For parameters and caches. */
export function detachFromScopes<T extends Owned>(tensor: T): T {
  for (let s = current; s; s = s.parent) {
    if (s.forget(tensor)) {
      lost.register(tensor, tensor.id, tensor);
      break;
    }
  }
  return tensor;
}

/** Called by `dispose()`. */
export function release(tensor: Owned): void {
  for (let s = current; s; s = s.parent) if (s.forget(tensor)) break;
  lost.unregister(tensor);
  native.free(Uint32Array.of(tensor.id), 1);
}
