/**
 * Several LoRA updates of one layer as one, W = Σ wᵢ sᵢ BᵢAᵢ or what comes near to it: PEFT's `add_weighted_adapter`
 * (tuners/lora/model.py, utils/merge_utils.py), to the letter. Of the product: `cat` and `svd`. Of A and B apart, or of the product with
 * `_svd`: `linear`; `ties` (arXiv 2306.01708): the largest numbers, of each place those whose sign has the majority; `dare_…` (arXiv
 * 2311.03099): numbers dropped by chance and the rest scaled up; `magnitude_prune`: the largest numbers.
 */
import { GraftError } from '../../base/index.ts';
import { Generator, ops, type Tensor } from '../../tensor/index.ts';

export const combinations = [
  'linear',
  'cat',
  'svd',
  'ties',
  'ties_svd',
  'dare_linear',
  'dare_linear_svd',
  'dare_ties',
  'dare_ties_svd',
  'magnitude_prune',
  'magnitude_prune_svd',
] as const;

export type Combination = (typeof combinations)[number];

/** One adapter's update of a layer, s·BA with A [r, in] and B [out, r], and its weight in the sum. */
export interface WeightedUpdate {
  readonly a: Tensor;
  readonly b: Tensor;
  readonly scaling: number;
  readonly weight: number;
}

export type Side = 'lora_A' | 'lora_B' | 'delta';

export interface Combining {
  readonly how: Combination;
  /** Of the new update. */
  readonly rank: number;
  /** Share of the numbers that pruning keeps. */
  readonly density: number;
  /** What decides the sign of a place under ties: the sum of the numbers, or the number of signs. */
  readonly majority: 'total' | 'frequency';
  /** 1 where DARE keeps a number of adapter `i`. */
  draw(side: Side, i: number, shape: readonly number[]): Tensor;
}

/** Draws with which a number is kept at the chance of `density`; the same for the same seed. */
export function draws(density: number, seed: bigint): Combining['draw'] {
  let turn = 0n;
  return (_side, _i, shape) => {
    using generator = new Generator(seed + turn++);
    return ops.toCopy(ops.ltScalar(ops.rand(shape, { generator }), density), { dtype: 'float32' });
  };
}

/** Ways that need updates of one rank: they mix A with A and B with B. */
export const needsEqualRanks = (how: Combination) => how !== 'cat' && how !== 'svd' && !how.endsWith('_svd');

/** Rank of what comes out, from the adapters' own. @throws GraftError 'usage' for unequal ones where they must be equal */
export function combinedRank(how: Combination, ranks: readonly number[], svdRank?: number): number {
  if (how === 'cat') return ranks.reduce((a, b) => a + b, 0);
  if (!needsEqualRanks(how)) return svdRank ?? Math.max(...ranks);
  if (new Set(ranks).size > 1) {
    throw new GraftError('usage', `the adapters have the ranks ${ranks.join(', ')}, and ${how} needs equal ones`, {
      hint: 'Use cat, or svd, or the same with _svd behind it',
    });
  }
  return ranks[0]!;
}

/** The `density` largest numbers by magnitude, the rest 0. */
function largestNumbers(tensor: Tensor, density: number): Tensor {
  const flat = ops.reshape(tensor, [-1]);
  const [, kept] = ops.topk(ops.abs(flat), Math.trunc(density * tensor.numel));
  const mask = ops.indexCopy(ops.zeros([tensor.numel]), 0, kept, ops.ones(kept.shape));
  return ops.reshape(ops.mul(flat, mask), tensor.shape);
}

const sum = (tensors: readonly Tensor[]) => tensors.reduce((a, b) => ops.add(a, b));
const float = (mask: Tensor) => ops.toCopy(mask, { dtype: 'float32' });

/** Of each place the weighted mean of the numbers whose sign has the majority. */
function elected(tensors: readonly Tensor[], weights: readonly number[], majority: Combining['majority']): Tensor {
  const signs = tensors.map((t) => ops.sign(t));
  const total = sum(majority === 'total' ? tensors : signs);
  const sign = ops.addScalar(ops.mulScalar(float(ops.geScalar(total, 0)), 2), -1);
  const masks = signs.map((own) => float(ops.eq(own, sign)));
  const mixed = sum(tensors.map((t, i) => ops.mul(ops.mulScalar(t, weights[i]!), masks[i]!)));
  return ops.div(mixed, ops.clampMin(sum(masks), 1));
}

/** Tensors of one shape as one. */
function mix(tensors: readonly Tensor[], weights: readonly number[], side: Side, combining: Combining): Tensor {
  const { density, majority, draw } = combining;
  const kind = combining.how.replace(/_svd$/, '');
  const pruned = tensors.map((tensor, i) => {
    if (density >= 1 || kind === 'linear' || kind === 'svd') return tensor;
    if (!kind.startsWith('dare')) return largestNumbers(tensor, density);
    return ops.divScalar(ops.mul(tensor, draw(side, i, tensor.shape)), density);
  });
  if (kind.endsWith('ties')) return elected(pruned, weights, majority);
  return sum(pruned.map((tensor, i) => ops.mulScalar(tensor, weights[i]!)));
}

/** `tensor` with zeros behind it along `axis`. */
function padded(tensor: Tensor, axis: 0 | 1, size: number): Tensor {
  const missing = size - tensor.size(axis);
  if (missing <= 0) return tensor;
  return ops.cat([tensor, ops.zeros(axis === 0 ? [missing, tensor.size(1)] : [tensor.size(0), missing])], axis);
}

/**
 * One update instead of several, of the scaling 1. Call it under `noGrad`.
 * @returns A [rank, in] and B [out, rank]
 */
export function combineUpdates(updates: readonly WeightedUpdate[], combining: Combining): { a: Tensor; b: Tensor } {
  const { how, rank } = combining;
  if (how === 'cat') {
    const a = updates.map((u) => ops.mulScalar(u.a, u.weight * u.scaling));
    return {
      a: padded(ops.cat(a, 0), 0, rank),
      b: padded(
        ops.cat(
          updates.map((u) => u.b),
          1,
        ),
        1,
        rank,
      ),
    };
  }
  if (needsEqualRanks(how)) {
    // Each of A and B gets the root of the weight, and A the sign.
    const both = updates.map(({ weight, scaling }) => weight * scaling);
    const roots = both.map((weight) => Math.sqrt(Math.abs(weight)));
    const a = mix(
      updates.map((u) => u.a),
      roots.map((root, i) => (both[i]! < 0 ? -root : root)),
      'lora_A',
      combining,
    );
    const b = mix(
      updates.map((u) => u.b),
      roots,
      'lora_B',
      combining,
    );
    return { a: padded(a, 0, rank), b: padded(b, 1, rank) };
  }
  const deltas = updates.map(({ a, b, scaling }) => ops.mulScalar(ops.mm(b, a), scaling));
  const delta = mix(
    deltas,
    updates.map(({ weight }) => weight),
    'delta',
    combining,
  );
  const [u, s, vh] = ops.linalgSvd(delta, false);
  const kept = Math.min(rank, s.numel);
  const b = ops.mul(ops.narrow(u, 1, 0, kept), ops.narrow(s, 0, 0, kept));
  return { a: padded(ops.contiguous(ops.narrow(vh, 0, 0, kept)), 0, rank), b: padded(ops.contiguous(b), 1, rank) };
}
