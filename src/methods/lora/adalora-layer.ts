/** What AdaLoRA puts in the place of a linear layer, and the term that keeps A and B near to orthogonal. */
import type { GateActivation, LinearLayer } from '../../nn/index.ts';
import { ops, Tensor } from '../../tensor/index.ts';
import type { Switch } from '../shared/index.ts';
import { LoraLinear } from './layers.ts';
import type { Triplets } from './rank-budget.ts';

export class AdaLoraLinear extends LoraLinear {
  readonly lora_E: Tensor;

  constructor(base: LinearLayer, { a, b, e }: Triplets, scaling: number, dropout: number, state: Switch) {
    super(base, a, b, scaling, dropout, state);
    this.lora_E = e;
  }

  protected override matrices(): readonly [Tensor, Tensor] {
    return [ops.mul(this.lora_A, this.lora_E), this.lora_B];
  }

  /** A layer that lost all its ranks is what it was. */
  protected override adapted(x: Tensor): Tensor {
    return this.lora_E.numel === 0 ? this.base_layer.forward(x) : super.adapted(x);
  }

  override forwardGated(gate: Tensor, up: Tensor, act: GateActivation): Tensor {
    if (this.lora_E.numel === 0) return this.base_layer.forwardGated(gate, up, act);
    return super.forwardGated(gate, up, act);
  }
}

/** Mean over A and B of all layers of ‖AAᵀ − I‖ and ‖BᵀB − I‖, a scalar. */
export function orthogonality(layers: readonly Triplets[]): Tensor {
  const far = (square: Tensor) => {
    const n = square.size(0);
    const eye = Tensor.from(
      Float32Array.from({ length: n * n }, (_, i) => (i % (n + 1) === 0 ? 1 : 0)),
      [n, n],
    );
    return ops.vectorNorm(ops.sub(square, eye), 2);
  };
  const terms = layers.flatMap(({ a, b }) => [far(ops.mm(a, ops.t(a))), far(ops.mm(ops.t(b), b))]);
  return ops.mean(ops.stack(terms));
}
