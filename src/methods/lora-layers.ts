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
  unwrapped,
} from '../nn/index.ts';
import { detachFromScopes, gradEnabled, noGrad, ops, scope, type Tensor } from '../tensor/index.ts';

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

  plain(): Embedding | undefined {
    return this.state.enabled ? undefined : this.base_layer.plain();
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

interface Folded {
  readonly weight: Tensor;
  readonly format: number;
  readonly wrappers: readonly Wrapper[];
}

/** Layers that hold the updates of merged wrappers, with what they held before. */
const folded = new WeakMap<Module, Folded>();

/** Sets which wrappers are folded into the layer under `wrapper`: several may come and go in any order. */
function refold(wrapper: Wrapper, change: (wrappers: readonly Wrapper[]) => readonly Wrapper[]): void {
  const layer = unwrapped(wrapper) as Linear | Embedding;
  const before = folded.get(layer) ?? { weight: layer.weight, format: layer.format, wrappers: [] };
  const wrappers = change(before.wrappers);
  if (folded.has(layer)) layer.weight.dispose();
  folded.delete(layer);
  [layer.weight, layer.format] = [before.weight, before.format];
  if (wrappers.length === 0) return;
  noGrad(() => {
    using s = scope();
    const sum = wrappers.reduce((weight, w) => ops.add(weight, w.delta()), layer.denseWeight());
    layer.weight = detachFromScopes(s.keep(sum));
    layer.format = -1;
  });
  folded.set(layer, { ...before, wrappers });
}

/** Adds the update of `wrapper` to the weight of the layer under it. */
export const fold = (wrapper: Wrapper) => refold(wrapper, (wrappers) => [...wrappers, wrapper]);

/** Takes it out again; without any, the layer has its own weight back, bit for bit. */
export const unfold = (wrapper: Wrapper) => refold(wrapper, (wrappers) => wrappers.filter((w) => w !== wrapper));
