/**
 * DoRA (Liu et al., arXiv 2402.09353, eq. 5): W' = m ⊙ (W + s·BA) / ‖W + s·BA‖, with the magnitude m [out] trained beside A and B.
 * The norm of each output's row follows the update but is a constant for gradients (§4.3). With dropout, the base's product with
 * the whole input stays as it is, and the magnitude scales the products with the dropped input (PEFT, lora/dora.py).
 */
import type { GateActivation, Linear, LinearLayer } from '../../nn/index.ts';
import { gradEnabled, noGrad, ops, scoped, Tensor } from '../../tensor/index.ts';
import { type LayerWeight, layerUnder, ownWeight, type RowUpdate, type Switch, type Table } from '../shared/index.ts';
import { LoraEmbedding, LoraLinear } from './layers.ts';

/** Returns ‖W + s·BA‖ of each output's row [out]: also the initial magnitude. */
export const rowNorms = (base: LinearLayer, a: Tensor, b: Tensor, scaling: number): Tensor =>
  noGrad(() =>
    scoped(() => ops.vectorNorm(ops.add(ownWeight(layerUnder(base)), ops.mm(b, a), { alpha: scaling }), 2, [1])),
  );

/** Returns the same for an embedding: the norm of each column of its table [C]. */
export const columnNorms = (base: Table, a: Tensor, b: Tensor, scaling: number): Tensor =>
  noGrad(() =>
    scoped(() => ops.vectorNorm(ops.add(ownWeight(layerUnder(base)), ops.t(ops.mm(b, a)), { alpha: scaling }), 2, [0])),
  );

/** m / norms; 0 for a row of zeros, whose magnitude is 0 too: the sketch of a model has only such rows. */
const ratio = (m: Tensor, norms: Tensor): Tensor => ops.div(m, ops.clampMin(norms, 1e-38));

/**
 * The norms of one layer, cached between forward passes without gradients, since they need a pass over the whole weight. A forward
 * pass that records gradients, as in training, drops the cache; other changes of A and B show in the tensors' versions.
 */
class NormCache {
  #cached: { readonly versions: string; readonly values: Float32Array } | undefined;

  get(matrices: readonly Tensor[], compute: () => Tensor): Tensor {
    if (gradEnabled()) {
      this.#cached = undefined;
      return compute();
    }
    const versions = matrices.map((matrix) => ops.version(matrix)).join();
    if (this.#cached?.versions !== versions) this.#cached = { versions, values: compute().data() as Float32Array };
    return Tensor.from(this.#cached.values);
  }
}

export class DoraLinear extends LoraLinear {
  /** m [out] */
  readonly lora_magnitude_vector: Tensor;
  readonly #norms = new NormCache();

  constructor(base: LinearLayer, a: Tensor, b: Tensor, m: Tensor, scaling: number, dropout: number, state: Switch) {
    super(base, a, b, scaling, dropout, state);
    this.lora_magnitude_vector = m;
  }

  /** m / ‖W + s·BA‖ [out] */
  #factor(): Tensor {
    const { base_layer, lora_A, lora_B, scaling } = this;
    const norms = this.#norms.get([lora_A, lora_B], () => rowNorms(base_layer, lora_A, lora_B, scaling));
    return ratio(this.lora_magnitude_vector, norms);
  }

  protected override adapted(x: Tensor): Tensor {
    const factor = this.#factor();
    const dropped = this.dropped(x);
    if (dropped) {
      const { weight, format, kernels } = layerUnder(this) as Linear;
      const product = kernels.linear(dropped, weight, format, null);
      const sum = ops.add(product, this.#update(dropped), { alpha: this.scaling });
      return ops.add(this.base_layer.forward(x), ops.sub(ops.mul(sum, factor), product));
    }
    const bias = this.#biasBelow();
    const scaled = ops.mul(this.#sum(x, bias), factor);
    return bias ? ops.add(scaled, bias) : scaled;
  }

  /** The bias [out] of the layer as the adapters below leave it: what they make of an input of zeros. */
  #biasBelow(): Tensor | undefined {
    const base = this.base_layer.plain();
    if (base) return base.bias;
    return ops.view(this.base_layer.forward(ops.zeros([1, this.inFeatures])), [this.outFeatures]);
  }

  /** x (W + s·BA)ᵀ without the bias, with the updates of adapters below: [N, in] → [N, out]. */
  #sum(x: Tensor, bias: Tensor | undefined): Tensor {
    const base = this.base_layer.plain();
    if (base) {
      const { weight, format, kernels } = base;
      return kernels.loraLinear(x, null, weight, format, null, this.lora_A, this.lora_B, this.scaling);
    }
    return ops.add(ops.sub(this.base_layer.forward(x), bias!), this.#update(x), { alpha: this.scaling });
  }

  /** x (BA)ᵀ */
  #update(x: Tensor): Tensor {
    return ops.mm(ops.mm(x, ops.t(this.lora_A)), ops.t(this.lora_B));
  }

  override forwardGated(gate: Tensor, up: Tensor, act: GateActivation): Tensor {
    if (!this.state.enabled) return this.base_layer.forwardGated(gate, up, act);
    return this.adapted(this.kernels.glu(gate, up, act));
  }

  /** m ⊙ (W x + s·BA x) / ‖W + s·BA‖: a bias below is not scaled. */
  override rowUpdate(): RowUpdate {
    const [gain, bias] = [this.#factor(), this.#biasBelow()];
    return { ...super.rowUpdate(), gain, ...(bias && { shift: ops.sub(bias, ops.mul(bias, gain)) }) };
  }

  /** The weight is scaled too. */
  override lowRank(): undefined {
    return undefined;
  }

  override fold({ weight, bias }: LayerWeight, _base: Tensor): LayerWeight {
    return { weight: ops.mul(ops.add(weight, this.delta()), ops.unsqueeze(this.#factor(), 1)), format: -1, bias };
  }
}

export class DoraEmbedding extends LoraEmbedding {
  /** m [C] */
  readonly lora_magnitude_vector: Tensor;
  readonly #norms = new NormCache();

  constructor(base: Table, a: Tensor, b: Tensor, m: Tensor, scaling: number, state: Switch) {
    super(base, a, b, scaling, state);
    this.lora_magnitude_vector = m;
  }

  /** m / ‖W + s·(BA)ᵀ‖ [C] */
  #factor(): Tensor {
    const { base_layer, lora_embedding_A: a, lora_embedding_B: b, scaling } = this;
    return ratio(
      this.lora_magnitude_vector,
      this.#norms.get([a, b], () => columnNorms(base_layer, a, b, scaling)),
    );
  }

  override adapted(vectors: Tensor, ids: Tensor): Tensor {
    return ops.mul(super.adapted(vectors, ids), this.#factor());
  }

  override fold({ weight, bias }: LayerWeight, _base: Tensor): LayerWeight {
    return { weight: ops.mul(ops.add(weight, this.delta()), this.#factor()), format: -1, bias };
  }
}
