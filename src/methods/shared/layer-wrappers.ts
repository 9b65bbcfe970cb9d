/** Base classes for the wrappers that methods put around a layer: one for linear layers, one for embeddings. */
import {
  crossEntropyOfLogits,
  type Embedding,
  type GateActivation,
  type Kernels,
  type LinearLayer,
  type LowRankUpdate,
  Module,
} from '../../nn/index.ts';
import type { Tensor } from '../../tensor/index.ts';
import type { LayerWeight } from './folds.ts';
import type { RowUpdate } from './row-update.ts';
import type { Switch, Wrapper } from './wrappers.ts';

/** A walk over the model does not enter `base_layer`: a wrapper and its layer are one module. */
const hiddenFields: ReadonlySet<string> = new Set(['base_layer']);

/** A wrapper around a linear layer. A method overrides `adapted` and `fold`. Switched off, it computes what the layer does. */
export abstract class LinearWrapper extends Module implements LinearLayer, Wrapper {
  base_layer: LinearLayer;
  readonly state: Switch;
  override hidden: ReadonlySet<string> = hiddenFields;

  constructor(base: LinearLayer, state: Switch) {
    super();
    this.base_layer = base;
    this.state = state;
  }

  get inFeatures(): number {
    return this.base_layer.inFeatures;
  }

  get outFeatures(): number {
    return this.base_layer.outFeatures;
  }

  get kernels(): Kernels {
    return this.base_layer.kernels;
  }

  /** The update that it adds to the layer's weight, where it is a product of two small matrices and changes nothing else. */
  lowRank(): LowRankUpdate | undefined {
    return undefined;
  }

  /**
   * What it does to the layer, for a bank; undefined: rows that use it cannot share a batch with others. Asked while it is enabled on
   * the model; the tensors may be its own.
   */
  rowUpdate(): RowUpdate | undefined {
    return undefined;
  }

  /** The adapted layer: x [N, in] → [N, out]. Called only while the adapter is enabled. */
  protected abstract adapted(x: Tensor): Tensor;

  abstract fold(current: LayerWeight, base: Tensor): LayerWeight;

  forward(x: Tensor): Tensor {
    return this.state.enabled ? this.adapted(x) : this.base_layer.forward(x);
  }

  forwardGated(gate: Tensor, up: Tensor, act: GateActivation): Tensor {
    if (!this.state.enabled) return this.base_layer.forwardGated(gate, up, act);
    return this.adapted(this.kernels.glu(gate, up, act));
  }

  crossEntropy(h: Tensor, targets: Tensor): Tensor {
    if (!this.state.enabled) return this.base_layer.crossEntropy(h, targets);
    return crossEntropyOfLogits((rows) => this.adapted(rows), h, targets);
  }

  plain() {
    return this.state.enabled ? undefined : this.base_layer.plain();
  }

  denseWeight(): Tensor {
    return this.base_layer.denseWeight();
  }
}

/** An embedding, or a wrapper around one. */
export type Table = Embedding | TableWrapper;

/** A wrapper around an embedding. */
export abstract class TableWrapper extends Module implements Wrapper {
  base_layer: Table;
  readonly state: Switch;
  override hidden: ReadonlySet<string> = hiddenFields;

  constructor(base: Table, state: Switch) {
    super();
    this.base_layer = base;
    this.state = state;
  }

  get width(): number {
    return this.base_layer.width;
  }

  get rows(): number {
    return this.base_layer.rows;
  }

  /** The adapted vectors [N, C], from the base's vectors [N, C] of the ids int64 [N]. */
  abstract adapted(vectors: Tensor, ids: Tensor): Tensor;

  abstract fold(current: LayerWeight, base: Tensor): LayerWeight;

  /** ids int64 [N] → [N, C] */
  forward(ids: Tensor): Tensor {
    const vectors = this.base_layer.forward(ids);
    return this.state.enabled ? this.adapted(vectors, ids) : vectors;
  }

  plain(): Embedding | undefined {
    return this.state.enabled ? undefined : this.base_layer.plain();
  }

  denseWeight(): Tensor {
    return this.base_layer.denseWeight();
  }
}
