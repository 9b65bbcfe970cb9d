/**
 * Combines several LoRA updates of one layer into one, W = Σ wᵢ sᵢ BᵢAᵢ or an approximation of it: PEFT's `add_weighted_adapter`
 * (tuners/lora/model.py, utils/merge_utils.py), to the letter. On the product BA: `cat` (exact) and `svd`. On A and B separately,
 * or on the product with the suffix `_svd`: `linear`, the weighted sum; `ties` (arXiv 2306.01708): of the largest values, at each
 * position those whose sign has the majority; `dare_…` (arXiv 2311.03099): values dropped at random and the rest rescaled;
 * `magnitude_prune`: the largest values.
 */
import { GraftError } from '../../base/index.ts';
import { Generator, ops, type Tensor } from '../../tensor/index.ts';

/** The ways to combine updates, under the names of PEFT's `combination_type`. */
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

/** A way to combine updates, as PEFT's `combination_type` names it. */
export type Combination = (typeof combinations)[number];

/** One adapter's update of a layer, s·BA with A [r, in] and B [out, r], and its weight in the sum. */
export interface WeightedUpdate {
  readonly a: Tensor;
  readonly b: Tensor;
  readonly scaling: number;
  readonly weight: number;
}

/** The tensor that is combined: A, B, or their product. */
export type UpdateTensor = 'lora_A' | 'lora_B' | 'delta';

/** How updates are combined. */
export interface CombineSettings {
  readonly how: Combination;
  /** Rank of the new update. */
  readonly rank: number;
  /** Fraction of the values that pruning and DARE keep. */
  readonly density: number;
  /** What decides the sign at a position under TIES: the sum of the values, or the number of signs. */
  readonly majority: 'total' | 'frequency';
  /** Draws DARE's mask for a tensor of adapter `i`: 1 where a value is kept, else 0. */
  draw(tensor: UpdateTensor, i: number, shape: readonly number[]): Tensor;
}

/** Returns random masks for DARE that keep a value with probability `density`; the same for the same seed. */
export function dareMasks(density: number, seed: bigint): CombineSettings['draw'] {
  let count = 0n;
  return (_tensor, _i, shape) => {
    using generator = new Generator(seed + count++);
    return float(ops.ltScalar(ops.rand(shape, { generator }), density));
  };
}

/** Whether the updates need equal ranks, because A is combined with A and B with B. */
const needsEqualRanks = (how: Combination) => how !== 'cat' && how !== 'svd' && !how.endsWith('_svd');

/** Returns the rank of the combined update. @throws GraftError 'usage' for different ranks where they must be equal */
export function combinedRank(how: Combination, ranks: readonly number[], svdRank?: number): number {
  if (how === 'cat') return ranks.reduce((a, b) => a + b, 0);
  if (!needsEqualRanks(how)) return svdRank ?? Math.max(...ranks);
  if (new Set(ranks).size > 1) {
    throw new GraftError('usage', `the adapters have ranks ${ranks.join(', ')}, and ${how} needs equal ranks`, {
      hint: 'Use cat, svd, or the same combination with the suffix _svd',
    });
  }
  return ranks[0]!;
}

const sum = (tensors: readonly Tensor[]) => tensors.reduce((a, b) => ops.add(a, b));
const float = (mask: Tensor) => ops.toCopy(mask, { dtype: 'float32' });

/** Returns the tensor with all but its `density` largest values, by magnitude, set to 0. */
function prunedByMagnitude(tensor: Tensor, density: number): Tensor {
  const flat = ops.reshape(tensor, [-1]);
  const [, largest] = ops.topk(ops.abs(flat), Math.trunc(density * tensor.numel));
  const mask = ops.indexCopy(ops.zeros([tensor.numel]), 0, largest, ops.ones(largest.shape));
  return ops.reshape(ops.mul(flat, mask), tensor.shape);
}

/** Returns at each position the weighted mean of the values whose sign has the majority (TIES). */
function signMajorityMean(
  tensors: readonly Tensor[],
  weights: readonly number[],
  majority: CombineSettings['majority'],
): Tensor {
  const signs = tensors.map((t) => ops.sign(t));
  const total = sum(majority === 'total' ? tensors : signs);
  const elected = ops.addScalar(ops.mulScalar(float(ops.geScalar(total, 0)), 2), -1);
  const masks = signs.map((sign) => float(ops.eq(sign, elected)));
  const weighted = sum(tensors.map((t, i) => ops.mul(ops.mulScalar(t, weights[i]!), masks[i]!)));
  return ops.div(weighted, ops.clampMin(sum(masks), 1));
}

/** Combines tensors of one shape. */
function combineTensors(
  tensors: readonly Tensor[],
  weights: readonly number[],
  kind: UpdateTensor,
  settings: CombineSettings,
): Tensor {
  const { density, majority, draw } = settings;
  const how = settings.how.replace(/_svd$/, '');
  const pruned = tensors.map((tensor, i) => {
    if (density >= 1 || how === 'linear' || how === 'svd') return tensor;
    if (!how.startsWith('dare')) return prunedByMagnitude(tensor, density);
    return ops.divScalar(ops.mul(tensor, draw(kind, i, tensor.shape)), density);
  });
  if (how.endsWith('ties')) return signMajorityMean(pruned, weights, majority);
  return sum(pruned.map((tensor, i) => ops.mulScalar(tensor, weights[i]!)));
}

/** Returns the tensor padded with zeros at the end of `axis`. */
function padded(tensor: Tensor, axis: 0 | 1, size: number): Tensor {
  const missing = size - tensor.size(axis);
  if (missing <= 0) return tensor;
  return ops.cat([tensor, ops.zeros(axis === 0 ? [missing, tensor.size(1)] : [tensor.size(0), missing])], axis);
}

/**
 * Returns one update of scaling 1 in place of several. Call it under `noGrad`.
 * @returns A [rank, in] and B [out, rank]
 */
export function combineUpdates(
  updates: readonly WeightedUpdate[],
  settings: CombineSettings,
): { a: Tensor; b: Tensor } {
  const { how, rank } = settings;
  const [allA, allB] = [updates.map(({ a }) => a), updates.map(({ b }) => b)];
  if (how === 'cat') {
    const scaledA = updates.map((u) => ops.mulScalar(u.a, u.weight * u.scaling));
    return { a: padded(ops.cat(scaledA, 0), 0, rank), b: padded(ops.cat(allB, 1), 1, rank) };
  }
  if (needsEqualRanks(how)) {
    // Each of A and B gets the square root of the weight, and A the sign.
    const factors = updates.map(({ weight, scaling }) => weight * scaling);
    const roots = factors.map((factor) => Math.sqrt(Math.abs(factor)));
    const signedRoots = roots.map((root, i) => (factors[i]! < 0 ? -root : root));
    const a = combineTensors(allA, signedRoots, 'lora_A', settings);
    const b = combineTensors(allB, roots, 'lora_B', settings);
    return { a: padded(a, 0, rank), b: padded(b, 1, rank) };
  }
  const deltas = updates.map(({ a, b, scaling }) => ops.mulScalar(ops.mm(b, a), scaling));
  const weights = updates.map(({ weight }) => weight);
  const delta = combineTensors(deltas, weights, 'delta', settings);
  const [u, s, vh] = ops.linalgSvd(delta, false);
  const kept = Math.min(rank, s.numel);
  const b = ops.mul(ops.narrow(u, 1, 0, kept), ops.narrow(s, 0, 0, kept));
  return { a: padded(ops.contiguous(ops.narrow(vh, 0, 0, kept)), 0, rank), b: padded(ops.contiguous(b), 1, rank) };
}
