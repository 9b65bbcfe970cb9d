/**
 * Compacter's projections (Mahabadi et al., arXiv 2106.04647; PHM layers, arXiv 2102.08597):
 * y = x·Σᵢ Aᵢ ⊗ Bᵢ + b with n small Aᵢ [n, n], one set for all layers, and Bᵢ = sᵢ tᵢ [in/n, out/n] of rank r.
 * Keys and initial values are those of AdapterHub (methods/modeling.py PHMLayer, init_shared_parameters).
 */
import { GraftError } from '../../base/index.ts';
import { ops, type Tensor } from '../../tensor/index.ts';
import type { ParameterInit } from '../shared/index.ts';
import type { CompleteBottleneck } from './named-configs.ts';

/** A trained projection and its parameters under their own names. */
export interface Projection {
  readonly parameters: ReadonlyMap<string, Tensor>;
  /** [N, in] → [N, out] */
  forward(x: Tensor): Tensor;
}

type Parameters = Map<string, Tensor>;

/** A factor as it is stored: one tensor, or two whose products it is. */
type Factor = () => Tensor;

/** Glorot's normal for matrices [n, fan in, fan out]. */
const glorot = (draws: ParameterInit, shape: readonly [number, number, number]) =>
  draws.normal(shape, Math.sqrt(2 / (shape[1] + shape[2])));

const product =
  (left: Tensor, right: Tensor): Factor =>
  () =>
    ops.bmm(left, right);

function rule(c: CompleteBottleneck, draws: ParameterInit, own: boolean, into: Parameters): Factor {
  const n = c.phm_dim;
  // AdapterHub takes other ranges for rules of a layer's own.
  const draw = (shape: readonly number[]) =>
    c.phm_c_init === 'normal'
      ? draws.normal(shape, own ? 0.01 : c.phm_init_range)
      : draws.uniform(shape, own ? 0.01 : 1);
  if (!c.factorized_phm_rule) {
    const whole = draw([n, n, n]);
    into.set('phm_rule', whole);
    return () => whole;
  }
  const [left, right] = [draw([n, n, 1]), draw([n, 1, n])];
  into.set('phm_rule_left', left).set('phm_rule_right', right);
  return product(left, right);
}

function large(
  c: CompleteBottleneck,
  draws: ParameterInit,
  from: number,
  to: number,
  name: string,
  into: Parameters,
): Factor {
  const n = c.phm_dim;
  const [rows, columns] = [from / n, to / n];
  if (!c.factorized_phm_W) {
    const whole = glorot(draws, [n, rows, columns]);
    into.set(name, whole);
    return () => whole;
  }
  const [left, right] = [glorot(draws, [n, rows, c.phm_rank]), glorot(draws, [n, c.phm_rank, columns])];
  into.set(`${name}_left`, left).set(`${name}_right`, right);
  return product(left, right);
}

/** What all layers of an adapter have in common; parameters under their own names. */
export interface SharedPhm {
  readonly parameters: Parameters;
  readonly rule: Factor | undefined;
  readonly W: ((direction: 'down' | 'up') => Factor) | undefined;
}

export function sharedPhm(c: CompleteBottleneck, draws: ParameterInit, width: number, inner: number): SharedPhm {
  const parameters: Parameters = new Map();
  const W = c.shared_W_phm && {
    down: large(c, draws, width, inner, 'W_down', parameters),
    up: large(c, draws, inner, width, 'W_up', parameters),
  };
  return {
    parameters,
    W: W ? (direction) => W[direction] : undefined,
    rule: c.shared_phm_rule ? rule(c, draws, false, parameters) : undefined,
  };
}

/** A projection from `from` to `to` numbers. @throws GraftError 'usage' for widths that n does not divide */
export function phmProjection(
  c: CompleteBottleneck,
  draws: ParameterInit,
  shared: SharedPhm,
  from: number,
  to: number,
  direction: 'down' | 'up',
): Projection {
  const n = c.phm_dim;
  const odd = [from, to].find((size) => size % n !== 0);
  if (odd !== undefined) {
    throw new GraftError('usage', `phm_dim is ${n}, and a projection of it is ${odd} wide, which is no multiple`, {
      place: 'phm_dim',
      hint: 'Choose reduction_factor and phm_dim so that both widths are multiples of phm_dim',
    });
  }
  const parameters: Parameters = new Map();
  const small = shared.rule ?? rule(c, draws, true, parameters);
  const W = shared.W?.(direction) ?? large(c, draws, from, to, 'W', parameters);
  const bias = c.phm_bias ? draws.full([to], 0) : undefined;
  if (bias) parameters.set('b', bias);
  return {
    parameters,
    forward(x) {
      // [n, a, b] and [n, p, q] → Σ over n → [a·p, b·q]
      const pairs = ops.mm(ops.t(ops.reshape(small(), [n, n * n])), ops.reshape(W(), [n, (from / n) * (to / n)]));
      const blocks = ops.permute(ops.view(pairs, [n, n, from / n, to / n]), [0, 2, 1, 3]);
      const y = ops.mm(x, ops.reshape(blocks, [from, to]));
      return bias ? ops.add(y, bias) : y;
    },
  };
}
