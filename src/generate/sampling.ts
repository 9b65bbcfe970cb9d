/** Sampling of the next token. Order and definition of the steps are those of transformers (`generation/logits_process.py`). */
import { GraftError } from '../base/index.ts';

/** How the next token is chosen. The definitions are those of transformers. */
export interface SamplingOptions {
  /** Divides the logits; 0 is greedy decoding. Default 0. */
  readonly temperature?: number | undefined;
  /** Sample from the k likeliest tokens only (arXiv 1805.04833); of equally likely ones, the lower ids. */
  readonly topK?: number | undefined;
  /** Nucleus sampling: sample from the likeliest tokens that together have this probability (arXiv 1904.09751). */
  readonly topP?: number | undefined;
  /** Sample from tokens with at least this fraction of the likeliest token's probability (arXiv 2407.01082). */
  readonly minP?: number | undefined;
  /** Above 1, tokens that occur in the prompt or the answer become less likely (arXiv 1909.05858). */
  readonly repetitionPenalty?: number | undefined;
  /** Subtracted from the logits of tokens that the answer has already (OpenAI's presence_penalty). Default 0. */
  readonly presencePenalty?: number | undefined;
  /** Subtracted, for each time that the answer has the token (OpenAI's frequency_penalty). Default 0. */
  readonly frequencyPenalty?: number | undefined;
  /** Added to the logits of tokens, by id. */
  readonly logitBias?: Readonly<Record<number, number>> | undefined;
}

/** Checks the options. @throws GraftError 'usage' for a value outside its range */
export function checkSampling(options: SamplingOptions, vocabSize = Infinity): void {
  const {
    temperature = 0,
    topK,
    topP,
    minP,
    repetitionPenalty,
    presencePenalty,
    frequencyPenalty,
    logitBias,
  } = options;
  const check = (name: string, value: number | undefined, rule: string, isValid: (value: number) => boolean) => {
    if (value !== undefined && !isValid(value)) {
      throw new GraftError('usage', `${name} must be ${rule}, and is ${value}`, { place: name });
    }
  };
  check('temperature', temperature, 'finite and 0 or more', (t) => t >= 0 && Number.isFinite(t));
  check('top-k', topK, 'a whole number above 0', (k) => Number.isInteger(k) && k > 0);
  check('top-p', topP, 'above 0 and at most 1', (p) => p > 0 && p <= 1);
  check('min-p', minP, 'between 0 and 1', (p) => p >= 0 && p <= 1);
  check('repetition-penalty', repetitionPenalty, 'finite and above 0', (p) => p > 0 && Number.isFinite(p));
  check('presence-penalty', presencePenalty, 'finite', Number.isFinite);
  check('frequency-penalty', frequencyPenalty, 'finite', Number.isFinite);
  for (const [id, bias] of Object.entries(logitBias ?? {})) {
    check('logit-bias', bias, 'finite', Number.isFinite);
    check('logit-bias', Number(id), `by ids of the vocabulary`, (i) => Number.isInteger(i) && i >= 0 && i < vocabSize);
  }
}

/** The text that a token is sampled for. */
export interface SampledText {
  /** Ids of the prompt and of the answer so far. */
  readonly seen: ReadonlySet<number>;
  /** How often the answer has each of its tokens. */
  readonly counts: ReadonlyMap<number, number>;
}

/** What each token would otherwise allocate: 12 bytes for each of the vocabulary. */
let scratch = { weights: new Float64Array(0), all: new Int32Array(0) };

/**
 * The id of the next token: logit bias, penalties, temperature, top-k, top-p, min-p, draw.
 * @param logits [V]; changed in place
 * @param random gives numbers in [0, 1); called once unless the temperature is 0
 * @param allowed one bit for each token that may be chosen: token i is bit i & 31 of number i >> 5. Default: all
 * @throws GraftError 'numeric' when a logit is NaN or infinite
 */
export function sample(
  logits: Float32Array,
  { seen, counts }: SampledText,
  options: SamplingOptions,
  random: () => number,
  allowed?: Int32Array,
): number {
  const { temperature = 0, topK = Infinity, topP = 1, minP = 0 } = options;
  const { logitBias = {}, repetitionPenalty = 1, presencePenalty = 0, frequencyPenalty = 0 } = options;
  for (const [id, bias] of Object.entries(logitBias)) logits[Number(id)]! += bias;
  if (repetitionPenalty !== 1) {
    for (const id of seen) {
      const x = logits[id]!;
      logits[id] = x < 0 ? x * repetitionPenalty : x / repetitionPenalty;
    }
  }
  if (presencePenalty !== 0 || frequencyPenalty !== 0) {
    for (const [id, count] of counts) logits[id]! -= presencePenalty + frequencyPenalty * count;
  }
  if (allowed) {
    for (let id = 0; id < logits.length; id++)
      if (((allowed[id >> 5]! >>> (id & 31)) & 1) === 0) logits[id] = -Infinity;
  }
  const best = argmax(logits);
  if (temperature === 0 || logits[best] === -Infinity) return best;

  if (scratch.all.length !== logits.length) {
    scratch = { weights: new Float64Array(logits.length), all: Int32Array.from(logits, (_, id) => id) };
  }
  // Unnormalised probabilities, 1 for the likeliest token, so that no step has to renormalise. Those of other ids than these mean nothing.
  const { weights } = scratch;
  const ids = topK < logits.length ? Int32Array.from(largestIds(logits, topK)) : scratch.all;
  for (const id of ids) weights[id] = Math.exp((logits[id]! - logits[best]!) / temperature);
  return draw(weights, topP < 1 ? nucleus(logits, weights, ids, topP) : ids, minP, random());
}

/** The id of the largest logit, the first of equal ones. @throws GraftError 'numeric' for a logit that is NaN or infinite */
function argmax(logits: Float32Array): number {
  let best = 0;
  for (let i = 0; i < logits.length; i++) {
    const x = logits[i]!;
    if (x > logits[best]!) best = i;
    else if (Number.isNaN(x)) requireFiniteLogit(x, i);
  }
  requireFiniteLogit(logits[best]!, best);
  return best;
}

/** @throws GraftError 'numeric' for a logit that is NaN or +∞; −∞ is a token that cannot be chosen */
export function requireFiniteLogit(value: number, id: number): void {
  if (value < Infinity) return;
  const what = Number.isNaN(value) ? 'NaN' : 'infinite';
  throw new GraftError('numeric', `the logit of token ${id} is ${what}`, { hint: 'Check the weights and the adapter' });
}

/** The fewest of `ids`, likeliest first, whose weights make up `share` of the weight of all. */
function nucleus(logits: Float32Array, weights: Float64Array, ids: ArrayLike<number>, share: number): number[] {
  let total = 0;
  for (let i = 0; i < ids.length; i++) total += weights[ids[i]!]!;
  // A few dozen are usually enough, so not all of the vocabulary is sorted. `ids` are the largest of all logits after top-k too.
  for (let k = Math.min(64, ids.length); ; k = Math.min(16 * k, ids.length)) {
    const sorted = largestIds(logits, k);
    let [count, sum] = [0, 0];
    while (count < k && sum < share * total) sum += weights[sorted[count++]!]!;
    if (sum >= share * total || k === ids.length) return sorted.slice(0, count);
  }
}

/**
 * Draws one of `ids` with a probability proportional to its weight, among those of at least `minWeight`.
 * @param point random, in [0, 1)
 */
function draw(weights: Float64Array, ids: ArrayLike<number>, minWeight: number, point: number): number {
  let total = 0;
  for (let i = 0; i < ids.length; i++) if (weights[ids[i]!]! >= minWeight) total += weights[ids[i]!]!;
  let [remaining, last] = [point * total, ids[0]!];
  for (let i = 0; i < ids.length; i++) {
    const weight = weights[ids[i]!]!;
    if (weight < minWeight || weight === 0) continue;
    last = ids[i]!;
    remaining -= weight;
    if (remaining < 0) break;
  }
  return last;
}

/**
 * Ids of the k largest logits, largest first; of equal ones, the lower ids. A heap with the smallest on top: O(V + k log k log V).
 */
export function largestIds(logits: Float32Array, k: number): number[] {
  const isSmaller = (a: number, b: number) => logits[a]! < logits[b]! || (logits[a]! === logits[b]! && a > b);
  const heap = Array.from({ length: k }, (_, i) => i);
  const sink = (at: number) => {
    const id = heap[at]!;
    for (let child = 2 * at + 1; child < k; child = 2 * at + 1) {
      if (child + 1 < k && isSmaller(heap[child + 1]!, heap[child]!)) child++;
      if (!isSmaller(heap[child]!, id)) break;
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
  return heap.sort((a, b) => (isSmaller(a, b) ? 1 : -1));
}
