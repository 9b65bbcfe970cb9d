/**
 * Changes of a layer's weight that can be taken back, in any order: updates that are merged, and what PiSSA or LoftQ do to the base.
 */
import { GraftError } from '../../base/index.ts';
import type { Embedding, Linear, Module } from '../../nn/index.ts';
import { dequantized } from '../../quant/index.ts';
import { detachFromScopes, isAbsent, noGrad, scope, type Tensor } from '../../tensor/index.ts';
import type { RowUpdate } from './row-update.ts';

/** A layer whose weight can be changed. */
export type Layer = Linear | Embedding;

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
  /** Returns the same change for some rows only; undefined, or absent: it changes the base for all. */
  rowUpdate?(): RowUpdate | undefined;
}

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
      const weight = current.format < 0 ? current.weight : dequantized(current.weight, current.format);
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
  if (isAbsent(weight))
    throw new GraftError(
      'usage',
      'a method reads a weight of the base that another has replaced, which no process keeps',
      {
        place: 'train.zero.stage',
        hint: 'Set it to 2',
      },
    );
  return format < 0 ? weight : dequantized(weight, format);
}

function changed(path: string, part: string): never {
  throw new GraftError(
    'usage',
    `the ${part} of '${path}' is changed by another adapter, so it cannot be trained as a copy`,
    {
      place: 'method',
      hint: 'Unmerge that adapter first; PiSSA, OLoRA and LoftQ need layers that no other method trains whole',
    },
  );
}

/** @throws GraftError 'usage' where another adapter is folded into the weight of this module */
export function requireOwnWeight(module: Module, path: string): void {
  if (foldedLayers.has(module as Layer)) changed(path, 'weight');
}

/** @throws GraftError 'usage' where another adapter is folded into the bias of this module */
export function requireOwnBias(module: Module, path: string): void {
  if (foldedLayers.get(module as Layer)?.bias) changed(path, 'bias');
}
