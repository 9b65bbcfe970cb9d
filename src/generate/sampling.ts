/** Choosing the next token. Order and meaning of the steps are transformers' (`generation/logits_process.py`). */
import { GraftError } from '../base/index.ts';

export interface SamplingOptions {
  /** Divides the logits; 0: always the likeliest token. Default 0. */
  readonly temperature?: number | undefined;
  /** Only the k likeliest (arXiv 1805.04833); of equal ones the lower ids. */
  readonly topK?: number | undefined;
  /** Only the likeliest that together have this probability (arXiv 1904.09751). */
  readonly topP?: number | undefined;
  /** Only those with at least this share of the likeliest's probability (arXiv 2407.01082). */
  readonly minP?: number | undefined;
  /** Above 1: tokens seen already become less likely (arXiv 1909.05858). */
  readonly repetitionPenalty?: number | undefined;
}

/** @throws GraftError 'usage' for a value outside its range */
export function checkSampling({ temperature = 0, topK, topP, minP, repetitionPenalty }: SamplingOptions): void {
  const demand = (name: string, value: number | undefined, rule: string, holds: (value: number) => boolean) => {
    if (value !== undefined && !holds(value)) {
      throw new GraftError('usage', `${name} must be ${rule}, and is ${value}`, { place: name });
    }
  };
  demand('temperature', temperature, 'finite and 0 or more', (t) => t >= 0 && Number.isFinite(t));
  demand('top-k', topK, 'a whole number above 0', (k) => Number.isInteger(k) && k > 0);
  demand('top-p', topP, 'above 0 and at most 1', (p) => p > 0 && p <= 1);
  demand('min-p', minP, 'between 0 and 1', (p) => p >= 0 && p <= 1);
  demand('repetition-penalty', repetitionPenalty, 'finite and above 0', (p) => p > 0 && Number.isFinite(p));
}

/**
 * The next token: penalty, temperature, top-k, top-p, min-p, draw.
 * @param logits [V]; changed in place by the repetition penalty
 * @param seen ids of prompt and answer so far
 * @param random gives numbers in [0, 1); one is drawn unless the temperature is 0
 * @throws GraftError 'numeric' when a logit is NaN or infinite
 */
export function sample(
  logits: Float32Array,
  seen: ReadonlySet<number>,
  options: SamplingOptions,
  random: () => number,
): number {
  const { temperature = 0, topK = Infinity, topP = 1, minP = 0, repetitionPenalty = 1 } = options;
  if (repetitionPenalty !== 1) {
    for (const id of seen) {
      const x = logits[id]!;
      logits[id] = x < 0 ? x * repetitionPenalty : x / repetitionPenalty;
    }
  }
  const top = likeliest(logits);
  if (temperature === 0) return top;

  // Weights instead of probabilities: the likeliest weighs 1, and nothing needs to be scaled after a cut.
  const weights = new Float64Array(logits.length);
  const ids = topK < logits.length ? Int32Array.from(largest(logits, topK)) : new Int32Array(logits.length);
  if (topK >= logits.length) for (let id = 0; id < ids.length; id++) ids[id] = id;
  for (const id of ids) weights[id] = Math.exp((logits[id]! - logits[top]!) / temperature);
  return draw(weights, topP < 1 ? nucleus(logits, weights, ids, topP) : ids, minP, random());
}

/** The id of the largest logit, the first of equal ones. */
export function likeliest(logits: Float32Array): number {
  let best = 0;
  for (let i = 0; i < logits.length; i++) {
    const x = logits[i]!;
    if (x > logits[best]!) best = i;
    else if (Number.isNaN(x)) {
      throw new GraftError('numeric', `the logit of token ${i} is not a number`, {
        hint: 'Check the weights and the adapter',
      });
    }
  }
  if (logits[best] === Number.POSITIVE_INFINITY)
    throw new GraftError('numeric', `the logit of token ${best} is infinite`, {
      hint: 'Check the weights and the adapter',
    });
  return best;
}

/** The fewest of `ids`, likeliest first, that weigh `share` of all of them. */
function nucleus(logits: Float32Array, weights: Float64Array, ids: ArrayLike<number>, share: number): number[] {
  let total = 0;
  for (let i = 0; i < ids.length; i++) total += weights[ids[i]!]!;
  // Mostly a few dozen are enough, so the vocabulary is not sorted for them. What top-k left is the likeliest, too.
  for (let k = Math.min(64, ids.length); ; k = Math.min(16 * k, ids.length)) {
    const sorted = largest(logits, k);
    let [count, sum] = [0, 0];
    while (count < k && sum < share * total) sum += weights[sorted[count++]!]!;
    if (sum >= share * total || k === ids.length) return sorted.slice(0, count);
  }
}

/** One of those `ids` that weigh at least `least`, each as likely as it is heavy. */
function draw(weights: Float64Array, ids: ArrayLike<number>, least: number, point: number): number {
  let total = 0;
  for (let i = 0; i < ids.length; i++) if (weights[ids[i]!]! >= least) total += weights[ids[i]!]!;
  let [left, last] = [point * total, ids[0]!];
  for (let i = 0; i < ids.length; i++) {
    const weight = weights[ids[i]!]!;
    if (weight < least || weight === 0) continue;
    last = ids[i]!;
    left -= weight;
    if (left < 0) break;
  }
  return last;
}

/** Ids of the k largest, largest first, of equal ones the lower ids: a heap with the worst on top, O(V + k log k log V). */
function largest(logits: Float32Array, k: number): number[] {
  const worse = (a: number, b: number) => logits[a]! < logits[b]! || (logits[a]! === logits[b]! && a > b);
  const heap = Array.from({ length: k }, (_, i) => i);
  const sink = (at: number) => {
    const id = heap[at]!;
    for (let child = 2 * at + 1; child < k; child = 2 * at + 1) {
      if (child + 1 < k && worse(heap[child + 1]!, heap[child]!)) child++;
      if (!worse(heap[child]!, id)) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = id;
  };
  for (let at = (k >> 1) - 1; at >= 0; at--) sink(at);
  for (let id = k; id < logits.length; id++) {
    if (logits[id]! <= logits[heap[0]!]!) continue;
    heap[0] = id;
    sink(0);
  }
  return heap.sort((a, b) => (worse(a, b) ? 1 : -1));
}
