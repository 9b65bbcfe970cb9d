import type { LayerNorm, RmsNorm } from '../../nn/index.ts';
import { ops, type Tensor } from '../../tensor/index.ts';
import { Bank, bySegments } from './bank.ts';

/** The copies of a norm that adapters have. */
export class NormBank extends Bank<LayerNorm | RmsNorm, LayerNorm | RmsNorm> {
  /** [N, C] → [N, C] */
  forward(x: Tensor): Tensor {
    const active = this.active(x.size(0));
    if (active.length === 0) return this.base_layer.forward(x);
    const copied = active.map(({ start, end, entry }) => ({ start, end, module: entry }));
    return bySegments(x.size(0), copied, this.base_layer, (norm, start, n) => norm.forward(ops.narrow(x, 0, start, n)));
  }

  /** Returns x + delta and its norm, as root-mean-square norms do. */
  forwardAdded(x: Tensor, delta: Tensor): [Tensor, Tensor] {
    if (!this.isActive) return (this.base_layer as RmsNorm).forwardAdded(x, delta);
    const sum = ops.add(x, delta);
    return [sum, this.forward(sum)];
  }
}
