/** The two kinds of layer that a wrapper can stand for: what it is, and what it passes on while it is switched off. */
import {
  crossEntropyOfLogits,
  type Embedding,
  type GateActivation,
  type Kernels,
  type LinearLayer,
  Module,
} from '../../nn/index.ts';
import type { Tensor } from '../../tensor/index.ts';
import type { LayerWeight, Switch, Wrapper } from './wrappers.ts';

/** A wrapper stands where its layer stood: a walk over the model sees one module, not two. */
const inner: ReadonlySet<string> = new Set(['base_layer']);

/** Stands for a linear layer. */
export abstract class LinearWrapper extends Module implements LinearLayer, Wrapper {
  base_layer: LinearLayer;
  readonly state: Switch;
  override hidden: ReadonlySet<string> = inner;

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

  /** x [N, in] → [N, out], switched on */
  protected abstract adapted(x: Tensor): Tensor;

  abstract fold(now: LayerWeight, own: Tensor): LayerWeight;

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

/** An embedding or what stands for one. */
export type Table = Embedding | TableWrapper;

/** Stands for an embedding. */
export abstract class TableWrapper extends Module implements Wrapper {
  base_layer: Table;
  readonly state: Switch;
  override hidden: ReadonlySet<string> = inner;

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

  /** What the adapter makes of the vectors [N, C] that the ids int64 [N] have below it. */
  protected abstract adapted(base: Tensor, ids: Tensor): Tensor;

  abstract fold(now: LayerWeight, own: Tensor): LayerWeight;

  /** ids int64 [N] → [N, C] */
  forward(ids: Tensor): Tensor {
    const base = this.base_layer.forward(ids);
    return this.state.enabled ? this.adapted(base, ids) : base;
  }

  plain(): Embedding | undefined {
    return this.state.enabled ? undefined : this.base_layer.plain();
  }

  denseWeight(): Tensor {
    return this.base_layer.denseWeight();
  }
}
