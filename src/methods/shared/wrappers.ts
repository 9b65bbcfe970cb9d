/**
 * Wrappers around layers: the chain that several adapters on one layer form, changes of a layer's weight that can be taken back,
 * and the adapter that a set of wrappers makes (switching, merging, detaching).
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
import type { TrainedCopies } from './copies.ts';
import type { Adapter } from './method.ts';

/** Whether the wrappers of one adapter are switched on. They share one object. */
export interface Switch {
  enabled: boolean;
}

type Layer = Linear | Embedding;

/** A layer's weight, dense where `format` is −1, and its bias. */
export interface LayerWeight {
  readonly weight: Tensor;
  readonly format: number;
  readonly bias: Tensor | undefined;
}

/** A change of a layer's weight that can be taken back. */
export interface Fold {
  /**
   * @param current the dense weight and bias with the earlier folds in them
   * @param base the layer's own weight, dense
   * @returns a new weight; the bias may be the current one
   */
  fold(current: LayerWeight, base: Tensor): LayerWeight;
}

export type Wrapper = Module & Fold & { base_layer: Module };

/** The unchanged weight of a layer, and the folds that are in its weight now. */
interface FoldedLayer {
  readonly weight: Tensor;
  readonly format: number;
  readonly folds: readonly Fold[];
  /** Present only where a fold changed the bias: else adapters that train the bias may replace it meanwhile. */
  readonly bias?: { readonly original: Tensor | undefined };
}

const foldedLayers = new WeakMap<Layer, FoldedLayer>();

const biasOf = (layer: Layer) => ('inFeatures' in layer ? layer.bias : undefined);

function setBias(layer: Layer, bias: Tensor | undefined): void {
  if (!('inFeatures' in layer)) return;
  if (bias) layer.bias = bias;
  else delete layer.bias;
}

/** Restores the layer's own weight, then applies the changed list of folds to it. */
function refold(layer: Layer, change: (folds: readonly Fold[]) => readonly Fold[]): void {
  const before = foldedLayers.get(layer) ?? { weight: layer.weight, format: layer.format, folds: [] };
  const folds = change(before.folds);
  if (foldedLayers.has(layer)) layer.weight.dispose();
  foldedLayers.delete(layer);
  [layer.weight, layer.format] = [before.weight, before.format];
  if (before.bias) {
    biasOf(layer)?.dispose();
    setBias(layer, before.bias.original);
  }
  if (folds.length === 0) return;
  const bias = biasOf(layer);
  const result = noGrad(() => {
    using s = scope();
    const base = layer.denseWeight();
    let current: LayerWeight = { weight: base, format: -1, bias };
    for (const each of folds) {
      const weight = current.format < 0 ? current.weight : ops.dequantize(current.weight, current.format);
      current = each.fold({ weight, format: -1, bias: current.bias }, base);
    }
    for (const tensor of [current.weight, current.bias])
      if (tensor && tensor !== bias) detachFromScopes(s.keep(tensor));
    return current;
  });
  [layer.weight, layer.format] = [result.weight, result.format];
  const { weight, format } = before;
  if (result.bias !== bias) setBias(layer, result.bias);
  foldedLayers.set(layer, { weight, format, folds, ...(result.bias !== bias && { bias: { original: bias } }) });
}

/** Applies a change to the layer's weight. Changes may be applied and taken back in any order. */
export const fold = (layer: Layer, added: Fold) => refold(layer, (folds) => [...folds, added]);

/** Takes a change back. Without any change the layer has its own memory again, bit for bit. */
export const unfold = (layer: Layer, removed: Fold) =>
  refold(layer, (folds) => folds.filter((other) => other !== removed));

/** Returns the weight and format of a layer without the changes that are folded in. */
export const ownLayerWeight = (layer: Layer): Omit<LayerWeight, 'bias'> => foldedLayers.get(layer) ?? layer;

/** Returns the same weight, dense: the layer's own memory, or freshly unpacked. */
export function ownWeight(layer: Layer): Tensor {
  const { weight, format } = ownLayerWeight(layer);
  return format < 0 ? weight : ops.dequantize(weight, format);
}

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
  readonly baseChanges?: readonly { readonly layer: Layer; readonly change: Fold }[];
  /** Further tensors to free when it is detached. */
  readonly owned?: readonly Tensor[];
}

/** Returns the adapter that these wrappers make; the caller has put them on the model. */
export function wrappedAdapter(model: Model, parts: WrappedParts): Adapter {
  const { wrappers, toggle, copies = [], baseChanges = [], owned = [], parameters, ...rest } = parts;
  let attached = true;
  let merged = false;
  let baseChanged = false;
  const changeBase = (on: boolean) => {
    if (on !== baseChanged) for (const { layer, change } of baseChanges) (on ? fold : unfold)(layer, change);
    baseChanged = on;
  };
  changeBase(true);

  const adapter: Adapter = {
    ...rest,
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
      if (!attached) return;
      attached = false;
      adapter.unmerge?.();
      changeBase(false);
      for (const { path, wrapper } of wrappers) unwrap(model.root, path, wrapper);
      for (const tensor of [...adapter.parameters.values(), ...owned]) tensor.dispose();
      for (const copy of copies) copy.dispose();
    },
    [Symbol.dispose]: () => adapter.detach(),
  };
  if (parts.unmergeable) return adapter;
  adapter.merge = () => {
    if (merged) return;
    adapter.enabled = true;
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
