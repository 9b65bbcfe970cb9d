/**
 * DoRA (Liu et al., arXiv 2402.09353, eq. 5): W' = m ⊙ (W + s·BA) / ‖W + s·BA‖ with the magnitude m [out] trained beside A and B,
 * and the norm of each output's row taken as a constant (§4.3): it follows the update, and no gradient goes through it. Under
 * drop-out the base product of what was not dropped stays, and the magnitude acts on the dropped input (PEFT, lora/dora.py).
 */
import type { GateActivation, Linear, LinearLayer } from '../../nn/index.ts';
import { gradEnabled, noGrad, ops, scoped, Tensor } from '../../tensor/index.ts';
import { type LayerWeight, layerUnder, ownWeight, type Switch, type Table } from '../shared/index.ts';
import { LoraEmbedding, LoraLinear } from './layers.ts';

/** ‖W + s·BA‖ of each output [out]: the magnitude at the start. */
export const rowNorms = (base: LinearLayer, a: Tensor, b: Tensor, scaling: number): Tensor =>
  noGrad(() =>
    scoped(() => ops.vectorNorm(ops.add(ownWeight(layerUnder(base)), ops.mm(b, a), { alpha: scaling }), 2, [1])),
  );

/** The same for a table: the norms of its columns [C]. */
export const columnNorms = (base: Table, a: Tensor, b: Tensor, scaling: number): Tensor =>
  noGrad(() =>
    scoped(() => ops.vectorNorm(ops.add(ownWeight(layerUnder(base)), ops.t(ops.mm(b, a)), { alpha: scaling }), 2, [0])),
  );

/**
 * The norms of one layer, which take a pass over its whole weight: kept from token to token while nothing is trained. An optimizer's
 * step is behind a forward pass that records gradients, and that forgets them; any other change shows in the tensors' versions.
 */
class Norms {
  #kept: { readonly versions: string; readonly values: Float32Array } | undefined;

  of(parts: readonly Tensor[], make: () => Tensor): Tensor {
    if (gradEnabled()) {
      this.#kept = undefined;
      return make();
    }
    const versions = parts.map((part) => ops.version(part)).join();
    if (this.#kept?.versions !== versions) this.#kept = { versions, values: make().data() as Float32Array };
    return Tensor.from(this.#kept.values);
  }
}

export class DoraLinear extends LoraLinear {
  readonly lora_magnitude_vector: Tensor;
  readonly #norms = new Norms();

  constructor(base: LinearLayer, a: Tensor, b: Tensor, m: Tensor, scaling: number, dropout: number, state: Switch) {
    super(base, a, b, scaling, dropout, state);
    this.lora_magnitude_vector = m;
  }

  /** m / ‖W + s·BA‖ [out] */
  #share(): Tensor {
    const { base_layer, lora_A, lora_B, scaling } = this;
    const norms = this.#norms.of([lora_A, lora_B], () => rowNorms(base_layer, lora_A, lora_B, scaling));
    return ops.div(this.lora_magnitude_vector, norms);
  }

  protected override adapted(x: Tensor): Tensor {
    const share = this.#share();
    const dropped = this.dropped(x);
    const { weight, format, bias, kernels } = layerUnder(this) as Linear;
    if (dropped) {
      const product = kernels.linear(dropped, weight, format, null);
      const sum = ops.add(product, this.#update(dropped), { alpha: this.scaling });
      return ops.add(this.base_layer.forward(x), ops.sub(ops.mul(sum, share), product));
    }
    const scaled = ops.mul(this.#sum(x, bias), share);
    return bias ? ops.add(scaled, bias) : scaled;
  }

  /** x (W + s·BA)ᵀ without the bias, and with what adapters below add. */
  #sum(x: Tensor, bias: Tensor | undefined): Tensor {
    const base = this.base_layer.plain();
    if (base) {
      const { weight, format, kernels } = base;
      return kernels.loraLinear(x, null, weight, format, null, this.lora_A, this.lora_B, this.scaling);
    }
    const below = this.base_layer.forward(x);
    return ops.add(bias ? ops.sub(below, bias) : below, this.#update(x), { alpha: this.scaling });
  }

  #update(x: Tensor): Tensor {
    return ops.mm(ops.mm(x, ops.t(this.lora_A)), ops.t(this.lora_B));
  }

  override forwardGated(gate: Tensor, up: Tensor, act: GateActivation): Tensor {
    if (!this.state.enabled) return this.base_layer.forwardGated(gate, up, act);
    return this.adapted(this.kernels.glu(gate, up, act));
  }

  override fold({ weight, bias }: LayerWeight, _own: Tensor): LayerWeight {
    return { weight: ops.mul(ops.add(weight, this.delta()), ops.unsqueeze(this.#share(), 1)), format: -1, bias };
  }
}

export class DoraEmbedding extends LoraEmbedding {
  readonly lora_magnitude_vector: Tensor;
  readonly #norms = new Norms();

  constructor(base: Table, a: Tensor, b: Tensor, m: Tensor, scaling: number, state: Switch) {
    super(base, a, b, scaling, state);
    this.lora_magnitude_vector = m;
  }

  /** m / ‖W + s·(BA)ᵀ‖ [C] */
  #share(): Tensor {
    const { base_layer, lora_embedding_A: a, lora_embedding_B: b, scaling } = this;
    return ops.div(
      this.lora_magnitude_vector,
      this.#norms.of([a, b], () => columnNorms(base_layer, a, b, scaling)),
    );
  }

  protected override adapted(base: Tensor, ids: Tensor): Tensor {
    return ops.mul(super.adapted(base, ids), this.#share());
  }

  override fold({ weight, bias }: LayerWeight, _own: Tensor): LayerWeight {
    return { weight: ops.mul(ops.add(weight, this.delta()), this.#share()), format: -1, bias };
  }
}
