import { GraftError } from '../../base/index.ts';
import type { GateActivation, Kernels, LinearLayer, LowRankRun } from '../../nn/index.ts';
import { ops, type Tensor } from '../../tensor/index.ts';
import type { RowUpdate } from '../shared/index.ts';
import { type ActiveRun, Bank, bySegments } from './bank.ts';

/** What one adapter does at a linear layer. B of its updates of low rank is transposed: [R, out]. */
export interface LinearEntry {
  /** The layer that stands for the base's, where the adapter has its own copy. */
  readonly module?: LinearLayer;
  /** [in]: what the layer reads is multiplied by it. */
  readonly inputGain?: Tensor;
  /** One after the other. */
  readonly updates: readonly RowUpdate[];
}

type Active = readonly ActiveRun<LinearEntry>[];

/** The adapters at a linear layer: one product with the base's weight, then each run's own update. */
export class LinearBank extends Bank<LinearLayer, LinearEntry> implements LinearLayer {
  get inFeatures(): number {
    return this.base_layer.inFeatures;
  }

  get outFeatures(): number {
    return this.base_layer.outFeatures;
  }

  get kernels(): Kernels {
    return this.base_layer.kernels;
  }

  forward(x: Tensor): Tensor {
    const active = this.active(x.size(0));
    return active.length === 0 ? this.base_layer.forward(x) : this.#adapted(x, active);
  }

  forwardGated(gate: Tensor, up: Tensor, act: GateActivation): Tensor {
    const active = this.active(gate.size(0));
    if (active.length === 0) return this.base_layer.forwardGated(gate, up, act);
    return this.#adapted(this.kernels.glu(gate, up, act), active);
  }

  /** @throws GraftError 'state' in a pass whose rows use adapters of the bank */
  crossEntropy(h: Tensor, targets: Tensor): Tensor {
    if (!this.isActive) return this.base_layer.crossEntropy(h, targets);
    throw new GraftError('state', 'rows whose adapters share a batch have no loss', {
      hint: 'Attach the adapter alone to measure it',
    });
  }

  plain() {
    return this.isActive ? undefined : this.base_layer.plain();
  }

  denseWeight(): Tensor {
    return this.base_layer.denseWeight();
  }

  #adapted(x: Tensor, active: Active): Tensor {
    const y = this.#product(this.#scaledInput(x, active), active);
    const depth = Math.max(...active.map(({ entry }) => entry.updates.length));
    for (let i = 0; i < depth; i++) this.#update(y, x, active, i);
    return y;
  }

  #scaledInput(x: Tensor, active: Active): Tensor {
    const scaled = active.flatMap(({ start, end, entry }) => {
      return entry.inputGain ? [{ start, end, gain: entry.inputGain }] : [];
    });
    if (scaled.length === 0) return x;
    const input = ops.clone(x);
    this.kernels.scaleRuns(input, scaled);
    return input;
  }

  #product(x: Tensor, active: Active): Tensor {
    const copied = active.flatMap(({ start, end, entry: { module } }) => (module ? [{ start, end, module }] : []));
    if (copied.length === 0) return this.base_layer.forward(x);
    return bySegments(x.size(0), copied, this.base_layer, (layer, start, n) =>
      layer.forward(ops.narrow(x, 0, start, n)),
    );
  }

  /** Applies update number `i` of each run to y, in place. */
  #update(y: Tensor, x: Tensor, active: Active, i: number): void {
    const runs = active.flatMap(({ start, end, entry }) => {
      const update = entry.updates[i];
      return update ? [{ start, end, update }] : [];
    });
    const lowRank = runs.flatMap(({ start, end, update }): LowRankRun[] =>
      (update.lowRank ?? []).map(({ a, b, scaling }) => ({ start, end, a, b, scaling })),
    );
    if (lowRank.length > 0) this.kernels.addLowRankRuns(y, x, lowRank);
    const scaled = runs.flatMap(({ start, end, update: { gain } }) => (gain ? [{ start, end, gain }] : []));
    if (scaled.length > 0) this.kernels.scaleRuns(y, scaled);
    for (const { start, end, update } of runs) {
      if (!update.shift && !update.after) continue;
      const rows = ops.narrow(y, 0, start, end - start);
      if (update.shift) ops.add_(rows, update.shift);
      if (update.after) ops.copy_(rows, update.after(rows, ops.narrow(x, 0, start, end - start)));
    }
  }
}
