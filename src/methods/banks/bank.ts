/** What banks share: a bank stands once at a module and holds, by their numbers, all adapters that change it. */
import { Module, moduleAt, type Ports, type RowRange, replaceModule } from '../../nn/index.ts';
import { ops, type Tensor } from '../../tensor/index.ts';
import { unwrap, type Wrapper } from '../shared/index.ts';

/** A walk over the model does not enter `base_layer`: a bank and its module are one. */
const hiddenFields: ReadonlySet<string> = new Set(['base_layer']);

/** Rows of a batch, and what their adapter does here. */
export interface ActiveRun<E> extends RowRange {
  readonly entry: E;
}

/** A module M in the place of another, with an entry E for each adapter. Without runs of these, it computes what the module does. */
export abstract class Bank<M extends Module, E> extends Module {
  base_layer: M;
  override hidden: ReadonlySet<string> = hiddenFields;
  readonly #entries = new Map<number, E>();
  readonly #ports: Ports;

  constructor(base: M, ports: Ports) {
    super();
    this.base_layer = base;
    this.#ports = ports;
  }

  entry(adapter: number): E | undefined {
    return this.#entries.get(adapter);
  }

  set(adapter: number, entry: E): void {
    this.#entries.set(adapter, entry);
  }

  /** Returns whether the bank is empty now. */
  delete(adapter: number): boolean {
    this.#entries.delete(adapter);
    return this.#entries.size === 0;
  }

  /** Returns the runs of the running pass that have an entry. @param vectors how many vectors the module reads */
  protected active(vectors: number): readonly ActiveRun<E>[] {
    if (this.#ports.runs.length === 0) return [];
    return this.#ports.runsFor(vectors).flatMap(({ adapter, start, end }) => {
      const entry = this.#entries.get(adapter);
      return entry === undefined ? [] : [{ start, end, entry }];
    });
  }

  /** Whether a run of the running pass has an entry. */
  protected get isActive(): boolean {
    return this.#ports.runs.some(({ adapter }) => this.#entries.has(adapter));
  }
}

/** Takes a bank off the model. */
export const takeOff = (root: Module, path: string, bank: Bank<Module, unknown>): void =>
  unwrap(root, path, bank as unknown as Wrapper);

/** Returns the bank at a path, which `make` makes where there is none yet. */
export function bankAt<B extends Bank<Module, unknown>>(
  root: Module,
  path: string,
  kind: abstract new (...args: never[]) => B,
  make: (base: Module) => B,
): B {
  const outer = moduleAt(root, path);
  for (let module: Module | undefined = outer; module; module = (module as Partial<Wrapper>).base_layer)
    if (module instanceof kind) return module;
  const bank = make(outer);
  replaceModule(root, path, bank);
  return bank;
}

/**
 * Returns what modules compute for their rows of a batch, [n, …] each, in order: those of runs, and `base` between them.
 * @param compute rows start to end − 1, for the module
 */
export function bySegments<M>(
  rows: number,
  runs: readonly (RowRange & { readonly module: M })[],
  base: M,
  compute: (module: M, start: number, length: number) => Tensor,
): Tensor {
  const parts: Tensor[] = [];
  let at = 0;
  for (const { start, end, module } of [...runs, { start: rows, end: rows, module: base }]) {
    if (at < start) parts.push(compute(base, at, start - at));
    if (start < end) parts.push(compute(module, start, end - start));
    at = end;
  }
  return parts.length === 1 ? parts[0]! : ops.cat(parts);
}
