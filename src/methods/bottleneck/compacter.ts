/**
 * Compacter's projections (Mahabadi et al., arXiv 2106.04647), made of PHM layers (arXiv 2102.08597):
 * y = x·Σᵢ Aᵢ ⊗ Bᵢ + b, with n small matrices Aᵢ [n, n], one set for all layers, and Bᵢ = sᵢ tᵢ [in/n, out/n] of rank r.
 * Keys and initial values are those of AdapterHub (methods/modeling.py PHMLayer, init_shared_parameters).
 */
import { GraftError } from '../../base/index.ts';
import { ops, type Tensor } from '../../tensor/index.ts';
import type { ParameterInit } from '../shared/index.ts';
import type { CompleteBottleneck } from './named-configs.ts';

/** A trained layer and its parameters under their own names. */
export interface Projection {
  readonly parameters: ReadonlyMap<string, Tensor>;
  /** [N, in] → [N, out] */
  forward(x: Tensor): Tensor;
}

type Parameters = Map<string, Tensor>;

/** Returns a stack of matrices [n, rows, columns]: a parameter, or the product of two. */
type Factor = () => Tensor;

/** Glorot's normal initialisation for matrices [n, fan in, fan out]. */
const glorot = (init: ParameterInit, shape: readonly [number, number, number]) =>
  init.normal(shape, Math.sqrt(2 / (shape[1] + shape[2])));

const productOf =
  (left: Tensor, right: Tensor): Factor =>
  () =>
    ops.bmm(left, right);

/** Adds the parameters of the matrices Aᵢ [n, n, n] to `parameters`. `shared`: one set for all layers. */
function smallFactors(c: CompleteBottleneck, init: ParameterInit, shared: boolean, parameters: Parameters): Factor {
  const n = c.phm_dim;
  // AdapterHub draws from other ranges when a layer has its own set.
  const draw = (shape: readonly number[]) =>
    c.phm_c_init === 'normal'
      ? init.normal(shape, shared ? c.phm_init_range : 0.01)
      : init.uniform(shape, shared ? 1 : 0.01);
  if (!c.factorized_phm_rule) {
    const rule = draw([n, n, n]);
    parameters.set('phm_rule', rule);
    return () => rule;
  }
  const [left, right] = [draw([n, n, 1]), draw([n, 1, n])];
  parameters.set('phm_rule_left', left).set('phm_rule_right', right);
  return productOf(left, right);
}

/** Adds the parameters of the matrices Bᵢ [n, in/n, out/n] to `parameters`. */
function largeFactors(
  c: CompleteBottleneck,
  init: ParameterInit,
  inWidth: number,
  outWidth: number,
  name: string,
  parameters: Parameters,
): Factor {
  const n = c.phm_dim;
  const [rows, columns] = [inWidth / n, outWidth / n];
  if (!c.factorized_phm_W) {
    const matrices = glorot(init, [n, rows, columns]);
    parameters.set(name, matrices);
    return () => matrices;
  }
  const [left, right] = [glorot(init, [n, rows, c.phm_rank]), glorot(init, [n, c.phm_rank, columns])];
  parameters.set(`${name}_left`, left).set(`${name}_right`, right);
  return productOf(left, right);
}

/** The factors that all layers of an adapter share; parameters under their own names. */
export interface SharedPhm {
  readonly parameters: Parameters;
  readonly rule: Factor | undefined;
  readonly W: ((direction: 'down' | 'up') => Factor) | undefined;
}

export function sharedPhm(c: CompleteBottleneck, init: ParameterInit, width: number, innerWidth: number): SharedPhm {
  const parameters: Parameters = new Map();
  const W = c.shared_W_phm && {
    down: largeFactors(c, init, width, innerWidth, 'W_down', parameters),
    up: largeFactors(c, init, innerWidth, width, 'W_up', parameters),
  };
  return {
    parameters,
    W: W ? (direction) => W[direction] : undefined,
    rule: c.shared_phm_rule ? smallFactors(c, init, true, parameters) : undefined,
  };
}

/** Returns a projection [N, inWidth] → [N, outWidth]. @throws GraftError 'usage' for widths that n does not divide */
export function phmProjection(
  c: CompleteBottleneck,
  init: ParameterInit,
  shared: SharedPhm,
  inWidth: number,
  outWidth: number,
  direction: 'down' | 'up',
): Projection {
  const n = c.phm_dim;
  const indivisible = [inWidth, outWidth].find((size) => size % n !== 0);
  if (indivisible !== undefined) {
    const problem = `phm_dim ${n} does not divide the width ${indivisible} of a projection`;
    throw new GraftError('usage', problem, {
      place: 'phm_dim',
      hint: 'Choose reduction_factor and phm_dim so that both widths are multiples of phm_dim',
    });
  }
  const parameters: Parameters = new Map();
  const A = shared.rule ?? smallFactors(c, init, false, parameters);
  const B = shared.W?.(direction) ?? largeFactors(c, init, inWidth, outWidth, 'W', parameters);
  const bias = c.phm_bias ? init.full([outWidth], 0) : undefined;
  if (bias) parameters.set('b', bias);
  return {
    parameters,
    forward(x) {
      // Σᵢ Aᵢ ⊗ Bᵢ: A [n, a, b] and B [n, p, q] → [a·p, b·q]
      const [rows, columns] = [inWidth / n, outWidth / n];
      const products = ops.mm(ops.t(ops.reshape(A(), [n, n * n])), ops.reshape(B(), [n, rows * columns]));
      const blocks = ops.permute(ops.view(products, [n, n, rows, columns]), [0, 2, 1, 3]);
      const y = ops.mm(x, ops.reshape(blocks, [inWidth, outWidth]));
      return bias ? ops.add(y, bias) : y;
    },
  };
}
