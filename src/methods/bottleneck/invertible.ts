/**
 * Invertible adapters (Pfeiffer et al., MAD-X, arXiv 2005.00052, eq. 2 to 5): the embeddings go through a coupling block
 * of NICE (arXiv 1410.8516), and the last hidden states back through it before the head of a language model.
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
  /** Undoes `forward`. */
  inverse(y: Tensor): Tensor;
}

/** y₁ = x₁ + F(x₂), y₂ = x₂ + G(y₁), with x cut in halves and F, G two layers each. */
export function niceCoupling(
  draws: ParameterInit,
  width: number,
  factor: number,
  act: (x: Tensor) => Tensor,
): Coupling {
  const parameters = new Map<string, Tensor>();
  const first = Math.floor(width / 2);
  const second = width - first;
  const subnet = (name: string, from: number, to: number) => {
    const inner = floorDivide(from, factor);
    const linear = (at: string, rows: number, columns: number) => {
      const weight = draws.normal([rows, columns], 0.02);
      const bias = draws.full([rows], 0);
      parameters.set(`${name}.${at}.weight`, weight).set(`${name}.${at}.bias`, bias);
      return (x: Tensor) => ops.linear(x, weight, bias);
    };
    const [down, up] = [linear('0', inner, from), linear('2', to, inner)];
    return (x: Tensor) => up(act(down(x)));
  };
  const F = subnet('F', second, first);
  const G = subnet('G', first, second);
  const halves = (x: Tensor) => ops.splitWithSizes(x, [first, second], 1) as [Tensor, Tensor];
  return {
    parameters,
    forward(x) {
      const [x1, x2] = halves(x);
      const y1 = ops.add(x1, F(x2));
      return ops.cat([y1, ops.add(x2, G(y1))], 1);
    },
    inverse(y) {
      const [y1, y2] = halves(y);
      const x2 = ops.sub(y2, G(y1));
      return ops.cat([ops.sub(y1, F(x2)), x2], 1);
    },
  };
}
