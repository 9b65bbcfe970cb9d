/** AdaLoRA's wrapper around a linear layer, and the term of the loss that keeps A and B close to orthogonal. */
import type { GateActivation, LinearLayer } from '../../nn/index.ts';
import { ops, type Tensor } from '../../tensor/index.ts';
import { identity, type RowUpdate, type Switch } from '../shared/index.ts';
import { LoraLinear } from './layers.ts';
import type { Triplets } from './rank-budget.ts';

/** A linear layer with the update s·B (E ∘ A). */
export class AdaLoraLinear extends LoraLinear {
  /** [R, 1] */
  readonly lora_E: Tensor;

  constructor(base: LinearLayer, { a, b, e }: Triplets, scaling: number, dropout: number, state: Switch) {
    super(base, a, b, scaling, dropout, state);
    this.lora_E = e;
  }

  protected override matrices(): readonly [Tensor, Tensor] {
    return [ops.mul(this.lora_A, this.lora_E), this.lora_B];
  }

  /** With rank 0, as a saved adapter may have it, the layer is the base's. */
  protected override adapted(x: Tensor): Tensor {
    return this.lora_E.numel === 0 ? this.base_layer.forward(x) : super.adapted(x);
  }

  override rowUpdate(): RowUpdate | undefined {
    return this.lora_E.numel === 0 ? {} : super.rowUpdate();
  }

  override forwardGated(gate: Tensor, up: Tensor, act: GateActivation): Tensor {
    if (this.lora_E.numel === 0) return this.base_layer.forwardGated(gate, up, act);
    return super.forwardGated(gate, up, act);
  }
}

/** Returns the mean over A and B of all layers of ‖AAᵀ − I‖ and ‖BᵀB − I‖ (eq. 4), a scalar. */
export function orthogonality(layers: readonly Triplets[]): Tensor {
  const distance = (gram: Tensor) => ops.vectorNorm(ops.sub(gram, identity(gram.size(0))), 2);
  const terms = layers.flatMap(({ a, b }) => [distance(ops.mm(a, ops.t(a))), distance(ops.mm(ops.t(b), b))]);
  return ops.mean(ops.stack(terms));
}
