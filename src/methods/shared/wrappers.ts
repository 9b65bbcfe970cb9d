/**
 * What stands in the place of a layer and holds it: the chain that several adapters on one layer form, and what an adapter made
 * of such wrappers can do (switch, merge, come off).
 */
import { GraftError } from '../../base/index.ts';
import {
  type Embedding,
  type Linear,
  type LinearLayer,
  type Model,
  type Module,
  moduleAt,
  replaceModule,
  unwrapped,
} from '../../nn/index.ts';
import { detachFromScopes, noGrad, ops, scope, type Tensor } from '../../tensor/index.ts';
import type { Adapter } from './method.ts';
import type { TrainedCopies } from './trained-copies.ts';

/** Whether the wrappers of an adapter are at work. */
export interface Switch {
  enabled: boolean;
}

type Layer = Linear | Embedding;

/** What a layer holds: a weight, dense where `format` is −1, and a bias. */
export interface LayerWeight {
  readonly weight: Tensor;
  readonly format: number;
  readonly bias: Tensor | undefined;
}

/** A change of a layer's own weights that can be taken back. */
export interface Fold {
  /**
   * @param now dense, with what was folded in before
   * @param own the layer's own weight, dense
   * @returns a new weight; the bias may be the one given
   */
  fold(now: LayerWeight, own: Tensor): LayerWeight;
}

export type Wrapper = Module & Fold & { base_layer: Module };

/** What a layer held before anything was folded in. */
interface Before {
  readonly weight: Tensor;
  readonly format: number;
  readonly folds: readonly Fold[];
  /** Only where a fold changed it: else it may come and go with adapters that train it. */
  readonly bias?: { readonly own: Tensor | undefined };
}

/** Layers that hold folded changes. */
const folded = new WeakMap<Layer, Before>();

const biasOf = (layer: Layer) => ('inFeatures' in layer ? layer.bias : undefined);

function putBias(layer: Layer, bias: Tensor | undefined): void {
  if (!('inFeatures' in layer)) return;
  if (bias) layer.bias = bias;
  else delete layer.bias;
}

/** Sets what is folded into a layer: several changes may come and go in any order. */
function refold(layer: Layer, change: (folds: readonly Fold[]) => readonly Fold[]): void {
  const before = folded.get(layer) ?? { weight: layer.weight, format: layer.format, folds: [] };
  const folds = change(before.folds);
  if (folded.has(layer)) layer.weight.dispose();
  folded.delete(layer);
  [layer.weight, layer.format] = [before.weight, before.format];
  if (before.bias) {
    biasOf(layer)?.dispose();
    putBias(layer, before.bias.own);
  }
  if (folds.length === 0) return;
  const bias = biasOf(layer);
  const held = noGrad(() => {
    using s = scope();
    const own = layer.denseWeight();
    let last: LayerWeight = { weight: own, format: -1, bias };
    for (const each of folds) {
      const weight = last.format < 0 ? last.weight : ops.dequantize(last.weight, last.format);
      last = each.fold({ weight, format: -1, bias: last.bias }, own);
    }
    for (const made of [last.weight, last.bias]) if (made && made !== bias) detachFromScopes(s.keep(made));
    return last;
  });
  [layer.weight, layer.format] = [held.weight, held.format];
  const { weight, format } = before;
  if (held.bias !== bias) putBias(layer, held.bias);
  folded.set(layer, { weight, format, folds, ...(held.bias !== bias && { bias: { own: bias } }) });
}

/** Changes the layer; `unfold` takes it back, and without any change the layer has its own weight again, bit for bit. */
export const fold = (layer: Layer, it: Fold) => refold(layer, (folds) => [...folds, it]);
export const unfold = (layer: Layer, it: Fold) => refold(layer, (folds) => folds.filter((other) => other !== it));

/** What the layer holds without what is folded in. */
export const ownLayerWeight = (layer: Layer): Omit<LayerWeight, 'bias'> => folded.get(layer) ?? layer;

/** Its weight, dense: the layer's own memory, or freshly unpacked. */
export function ownWeight(layer: Layer): Tensor {
  const { weight, format } = ownLayerWeight(layer);
  return format < 0 ? weight : ops.dequantize(weight, format);
}

/** The layer under all wrappers. */
export const layerUnder = (module: Module) => unwrapped(module) as Layer;

/** Takes `wrapper` out of the chain of wrappers at `path`, wherever in it it stands. */
function unwrap(root: Module, path: string, wrapper: Wrapper): void {
  let outer = moduleAt(root, path) as Wrapper;
  if (outer === wrapper) {
    replaceModule(root, path, wrapper.base_layer);
    return;
  }
  while (outer.base_layer !== wrapper) outer = outer.base_layer as Wrapper;
  outer.base_layer = wrapper.base_layer as LinearLayer & Embedding;
}

/** An adapter that is made of wrappers. */
export interface Wrapped
  extends Omit<Adapter, 'enabled' | 'detach' | 'merge' | 'unmerge' | 'made' | typeof Symbol.dispose> {
  readonly wrappers: readonly { readonly path: string; readonly wrapper: Wrapper }[];
  readonly switched: Switch;
  /** Trained beside them, on copies. */
  readonly copies?: readonly TrainedCopies[];
  /** What the base is changed by while the adapter is at work, merged or not. */
  readonly rebased?: readonly { readonly layer: Layer; readonly by: Fold }[];
  /** More tensors that go when it is detached. */
  readonly owned?: readonly Tensor[];
}

export function wrappedAdapter(model: Model, given: Wrapped): Adapter {
  const { wrappers, switched, copies = [], rebased = [], owned = [], ...rest } = given;
  let attached = true;
  let merged = false;
  let at = false;
  const rebase = (on: boolean) => {
    if (on !== at) for (const { layer, by } of rebased) (on ? fold : unfold)(layer, by);
    at = on;
  };
  rebase(true);

  const adapter: Adapter = {
    ...rest,
    get enabled() {
      return switched.enabled || merged;
    },
    set enabled(on: boolean) {
      if (merged) throw new GraftError('state', 'a merged adapter cannot be switched', { hint: 'Unmerge it first' });
      switched.enabled = on;
      rebase(on);
      for (const copy of copies) copy.use(on);
    },
    detach() {
      if (!attached) return;
      attached = false;
      adapter.unmerge?.();
      rebase(false);
      for (const { path, wrapper } of wrappers) unwrap(model.root, path, wrapper);
      for (const tensor of [...adapter.parameters.values(), ...owned]) tensor.dispose();
      for (const copy of copies) copy.dispose();
    },
    [Symbol.dispose]: () => adapter.detach(),
  };
  if (given.unmergeable) return adapter;
  adapter.merge = () => {
    if (merged) return;
    adapter.enabled = true;
    for (const { wrapper } of wrappers) fold(layerUnder(wrapper), wrapper);
    merged = true;
    switched.enabled = false;
  };
  adapter.unmerge = () => {
    if (!merged) return;
    for (const { wrapper } of wrappers) unfold(layerUnder(wrapper), wrapper);
    merged = false;
    switched.enabled = true;
  };
  return adapter;
}
