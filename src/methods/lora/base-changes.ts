/** Initial updates of layers, and the changes of the frozen base that some of them need. */
import { ops, type Tensor } from '../../tensor/index.ts';
import type { Fold, LayerWeight, RowUpdate } from '../shared/index.ts';

/** The update of one layer before training. */
export interface InitialUpdate {
  readonly a: Tensor;
  readonly b: Tensor;
  /** The change of the base while the adapter is enabled. */
  readonly baseChange?: Residual | Requantized;
}

/** The base without the initial update: W − s·BA (PiSSA, OLoRA). */
export class Residual implements Fold {
  readonly a: Tensor;
  readonly b: Tensor;
  readonly scaling: number;

  constructor(a: Tensor, b: Tensor, scaling: number) {
    this.a = a;
    this.b = b;
    this.scaling = scaling;
  }

  fold({ weight, bias }: LayerWeight, _base: Tensor): LayerWeight {
    return { weight: ops.sub(weight, ops.mulScalar(ops.mm(this.b, this.a), this.scaling)), format: -1, bias };
  }

  rowUpdate(): RowUpdate {
    return { lowRank: [{ a: this.a, b: this.b, scaling: -this.scaling }] };
  }
}

/** The base as LoftQ quantised it again, after more than one of its steps. */
export class Requantized implements Fold {
  readonly weight: Tensor;
  readonly format: number;

  constructor(weight: Tensor, format: number) {
    this.weight = weight;
    this.format = format;
  }

  fold({ bias }: LayerWeight, _base: Tensor): LayerWeight {
    return { weight: ops.clone(this.weight), format: this.format, bias };
  }
}

/** Returns the tensors of an update's change of the base. */
export const baseTensors = ({ baseChange: change }: InitialUpdate): Tensor[] =>
  change === undefined ? [] : change instanceof Residual ? [change.a, change.b] : [change.weight];
