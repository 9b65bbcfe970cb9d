/** What LoRA puts in the place of a layer, and the chain that several adapters on one layer form. */
import {
  crossEntropyOfLogits,
  type Embedding,
  type GateActivation,
  type Kernels,
  type Linear,
  type LinearLayer,
  Module,
  moduleAt,
  replaceModule,
} from '../nn/index.ts';
import { gradEnabled, ops, type Tensor } from '../tensor/index.ts';

/** A wrapper stands where its layer stood: a walk over the model sees one module, not two. */
const inner: ReadonlySet<string> = new Set(['base_layer']);

/** A linear layer with an update beside it. */
export class LoraLinear extends Module implements LinearLayer {
  base_layer: LinearLayer;
  readonly lora_A: Tensor;
  readonly lora_B: Tensor;
  readonly scaling: number;
  readonly dropout: number;
  readonly state: { enabled: boolean };
  override hidden: ReadonlySet<string> = inner;

  constructor(base: LinearLayer, a: Tensor, b: Tensor, scaling: number, dropout: number, state: { enabled: boolean }) {
    super();
    this.base_layer = base;
    this.lora_A = a;
    this.lora_B = b;
    this.scaling = scaling;
    this.dropout = dropout;
    this.state = state;
  }

  get inFeatures(): number {
    return this.base_layer.inFeatures;
  }

  get outFeatures(): number {
    return this.base_layer.outFeatures;
  }

  /** [N, in] → [N, out] */
  forward(x: Tensor): Tensor {
    if (!this.state.enabled) return this.base_layer.forward(x);
    const dropped = this.dropout > 0 && gradEnabled() ? ops.dropout(x, this.dropout, true) : null;
    const base = this.base_layer.plain();
    if (base) {
      const { weight, format, bias, kernels } = base;
      return kernels.loraLinear(x, dropped, weight, format, bias ?? null, this.lora_A, this.lora_B, this.scaling);
    }
    // On top of another active adapter: add to what it gives.
    const h = ops.mm(dropped ?? x, ops.t(this.lora_A));
    return ops.add(this.base_layer.forward(x), ops.mm(h, ops.t(this.lora_B)), { alpha: this.scaling });
  }

  forwardGated(gate: Tensor, up: Tensor, act: GateActivation): Tensor {
    if (!this.state.enabled) return this.base_layer.forwardGated(gate, up, act);
    const base = this.base_layer.plain();
    if (base && !(this.dropout > 0 && gradEnabled())) {
      const { weight, format, bias, kernels } = base;
      return kernels.loraGatedLinear(
        gate,
        up,
        act,
        weight,
        format,
        bias ?? null,
        this.lora_A,
        this.lora_B,
        this.scaling,
      );
    }
    return this.forward(this.kernels.glu(gate, up, act));
  }

  get kernels(): Kernels {
    return this.base_layer.kernels;
  }

  crossEntropy(h: Tensor, targets: Tensor): Tensor {
    if (!this.state.enabled) return this.base_layer.crossEntropy(h, targets);
    return crossEntropyOfLogits((rows) => this.forward(rows), h, targets);
  }

  plain() {
    return this.state.enabled ? undefined : this.base_layer.plain();
  }

  denseWeight(): Tensor {
    return this.base_layer.denseWeight();
  }

  /** s·BA [out, in]: what the update adds to the weight. */
  delta(): Tensor {
    return ops.mulScalar(ops.mm(this.lora_B, this.lora_A), this.scaling);
  }
}

/** An embedding with an update: row i of the table gains s·(B A[:, i])ᵀ. */
export class LoraEmbedding extends Module {
  base_layer: Embedding | LoraEmbedding;
  readonly lora_embedding_A: Tensor;
  readonly lora_embedding_B: Tensor;
  readonly scaling: number;
  readonly state: { enabled: boolean };
  override hidden: ReadonlySet<string> = inner;

  constructor(base: Embedding | LoraEmbedding, a: Tensor, b: Tensor, scaling: number, state: { enabled: boolean }) {
    super();
    this.base_layer = base;
    this.lora_embedding_A = a;
    this.lora_embedding_B = b;
    this.scaling = scaling;
    this.state = state;
  }

  get width(): number {
    return this.base_layer.width;
  }

  get rows(): number {
    return this.base_layer.rows;
  }

  /** ids int64 [N] → [N, C] */
  forward(ids: Tensor): Tensor {
    const base = this.base_layer.forward(ids);
    if (!this.state.enabled) return base;
    const h = ops.embedding(ops.t(this.lora_embedding_A), ids);
    return ops.add(base, ops.mm(h, ops.t(this.lora_embedding_B)), { alpha: this.scaling });
  }

  denseWeight(): Tensor {
    return this.base_layer.denseWeight();
  }

  delta(): Tensor {
    return ops.mulScalar(ops.t(ops.mm(this.lora_embedding_B, this.lora_embedding_A)), this.scaling);
  }
}

export type Wrapper = LoraLinear | LoraEmbedding;

/** Takes `wrapper` out of the chain of wrappers at `path`, wherever in it it stands. */
export function unwrap(root: Module, path: string, wrapper: Wrapper): void {
  let outer = moduleAt(root, path) as Wrapper;
  if (outer === wrapper) {
    replaceModule(root, path, wrapper.base_layer as Module);
    return;
  }
  while (outer.base_layer !== wrapper) outer = outer.base_layer as Wrapper;
  outer.base_layer = wrapper.base_layer as LinearLayer & Embedding;
}

/** The layer under all wrappers, and a way to put another in its place. */
export function innermost(wrapper: Wrapper): { layer: Linear | Embedding; put: (layer: Linear | Embedding) => void } {
  let outer = wrapper;
  while (outer.base_layer instanceof LoraLinear || outer.base_layer instanceof LoraEmbedding) outer = outer.base_layer;
  return {
    layer: outer.base_layer as Linear | Embedding,
    put(layer) {
      outer.base_layer = layer as Linear & Embedding;
    },
  };
}
