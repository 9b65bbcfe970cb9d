/**
 * Invertible adapters (Pfeiffer et al., MAD-X, arXiv 2005.00052, eq. 2 to 5): the embeddings pass through a coupling block of NICE
 * (arXiv 1410.8516), and the last hidden states through its inverse before the head of a language model.
 * Keys and initial values are those of AdapterHub (methods/modeling.py NICECouplingBlock).
 */
import { ops, type Tensor } from '../../tensor/index.ts';
import type { ParameterInit } from '../shared/index.ts';
import { floorDivide } from './config.ts';

export interface Coupling {
  /** `F.0.weight`, … */
  readonly parameters: ReadonlyMap<string, Tensor>;
  /** [N, C] → [N, C] */
  forward(x: Tensor): Tensor;
  /** The inverse of `forward`: [N, C] → [N, C]. */
  inverse(y: Tensor): Tensor;
}

/**
 * Returns the block y₁ = x₁ + F(x₂), y₂ = x₂ + G(y₁), with x split in halves [N, C/2]; F and G are perceptrons of two layers.
 * @param reduction the width of a half divided by that of the hidden layer
 */
export function niceCoupling(
  init: ParameterInit,
  width: number,
  reduction: number,
  activation: (x: Tensor) => Tensor,
): Coupling {
  const parameters = new Map<string, Tensor>();
  const width1 = Math.floor(width / 2);
  const width2 = width - width1;
  const perceptron = (name: string, inWidth: number, outWidth: number) => {
    const innerWidth = floorDivide(inWidth, reduction);
    const linear = (layer: string, rows: number, columns: number) => {
      const weight = init.normal([rows, columns], 0.02);
      const bias = init.full([rows], 0);
      parameters.set(`${name}.${layer}.weight`, weight).set(`${name}.${layer}.bias`, bias);
      return (x: Tensor) => ops.linear(x, weight, bias);
    };
    const [down, up] = [linear('0', innerWidth, inWidth), linear('2', outWidth, innerWidth)];
    return (x: Tensor) => up(activation(down(x)));
  };
  const F = perceptron('F', width2, width1);
  const G = perceptron('G', width1, width2);
  const split = (x: Tensor) => ops.splitWithSizes(x, [width1, width2], 1) as [Tensor, Tensor];
  return {
    parameters,
    forward(x) {
      const [x1, x2] = split(x);
      const y1 = ops.add(x1, F(x2));
      return ops.cat([y1, ops.add(x2, G(y1))], 1);
    },
    inverse(y) {
      const [y1, y2] = split(y);
      const x2 = ops.sub(y2, G(y1));
      return ops.cat([ops.sub(y1, F(x2)), x2], 1);
    },
  };
}
