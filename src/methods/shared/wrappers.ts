/** Wrappers around layers: the chain that several adapters on one layer form, and the adapter that a set of wrappers makes. */
import { GraftError } from '../../base/index.ts';
import {
  type Embedding,
  type LinearLayer,
  type Model,
  type Module,
  moduleAt,
  replaceModule,
  unwrapped,
} from '../../nn/index.ts';
import type { Tensor } from '../../tensor/index.ts';
import type { TrainedCopies } from './copies.ts';
import { type Fold, fold, type Layer, unfold } from './folds.ts';
import type { Adapter } from './method.ts';
import { placed } from './placement.ts';

/** Whether the wrappers of one adapter are switched on. They share one object. */
export interface Switch {
  enabled: boolean;
}

export type Wrapper = Module & Fold & { base_layer: Module };

/** Returns the layer below all wrappers. */
export const layerUnder = (module: Module) => unwrapped(module) as Layer;

/** Takes `wrapper` out of the chain of wrappers at `path`, at any position. */
export function unwrap(root: Module, path: string, wrapper: Wrapper): void {
  let outer = moduleAt(root, path) as Wrapper;
  if (outer === wrapper) {
    replaceModule(root, path, wrapper.base_layer);
    return;
  }
  while (outer.base_layer !== wrapper) outer = outer.base_layer as Wrapper;
  outer.base_layer = wrapper.base_layer as LinearLayer & Embedding;
}

/** What an adapter of wrappers is made of. */
export interface WrappedParts
  extends Omit<Adapter, 'enabled' | 'detach' | 'merge' | 'unmerge' | typeof Symbol.dispose> {
  /** The wrappers' parameters; those of `copies` follow them in the adapter. */
  readonly parameters: ReadonlyMap<string, Tensor>;
  readonly wrappers: readonly { readonly path: string; readonly wrapper: Wrapper }[];
  /** The switch that the wrappers share. */
  readonly toggle: Switch;
  /** Copies of parts of the base that are trained too. */
  readonly copies?: readonly TrainedCopies[];
  /** Changes of the base while the adapter is enabled, merged or not. */
  readonly baseChanges?: readonly { readonly path: string; readonly layer: Layer; readonly change: Fold }[];
  /** Further tensors to free when it is detached. */
  readonly owned?: readonly Tensor[];
}

/** Returns the adapter that these wrappers make; the caller has put them on the model. */
export function wrappedAdapter(model: Model, parts: WrappedParts): Adapter {
  const { wrappers, toggle, copies = [], baseChanges = [], owned = [], parameters, ...rest } = parts;
  let onModel = true;
  let merged = false;
  let baseChanged = false;
  const changeBase = (on: boolean) => {
    if (on !== baseChanged) for (const { layer, change } of baseChanges) (on ? fold : unfold)(layer, change);
    baseChanged = on;
  };
  changeBase(true);
  const withdraw = () => {
    if (!onModel) return;
    onModel = false;
    changeBase(false);
    for (const { path, wrapper } of wrappers) unwrap(model.root, path, wrapper);
    for (const copy of copies) copy.use(false);
  };

  const changes = new Set(baseChanges.map(({ path }) => `${path}.weight`));
  const adapter: Adapter = {
    ...rest,
    changes,
    replaces: new Set([...changes, ...(parts.replaces ?? []), ...copies.flatMap((copy) => copy.replaces)]),
    parameters: new Map([...parameters, ...copies.flatMap((copy) => [...copy.parameters])]),
    get enabled() {
      return toggle.enabled || merged;
    },
    set enabled(on: boolean) {
      if (merged) {
        throw new GraftError('state', 'a merged adapter cannot be enabled or disabled', { hint: 'Unmerge it first' });
      }
      toggle.enabled = on;
      changeBase(on);
      for (const copy of copies) copy.use(on);
    },
    detach() {
      adapter.unmerge?.();
      withdraw();
      for (const tensor of [...adapter.parameters.values(), ...owned]) tensor.dispose();
      for (const copy of copies) copy.dispose();
    },
    [Symbol.dispose]: () => adapter.detach(),
  };
  placed(adapter, { wrappers, copies, baseChanges, ports: [], withdraw });
  if (parts.unmergeable) return adapter;
  adapter.merge = () => {
    if (merged) return;
    if (!toggle.enabled) adapter.enabled = true;
    for (const { wrapper } of wrappers) fold(layerUnder(wrapper), wrapper);
    merged = true;
    toggle.enabled = false;
  };
  adapter.unmerge = () => {
    if (!merged) return;
    for (const { wrapper } of wrappers) unfold(layerUnder(wrapper), wrapper);
    merged = false;
    toggle.enabled = true;
  };
  return adapter;
}
