/** Choosing the next token. Order and meaning of the steps are transformers' (generation/logits_process.py). */
import { GraftError } from '../base/index.ts';

export interface SamplingOptions {
  /** 0: always the likeliest token. */
  readonly temperature?: number | undefined;
  readonly topK?: number | undefined;
  readonly topP?: number | undefined;
  readonly minP?: number | undefined;
  /** Above 1: tokens seen already become less likely (arXiv 1909.05858). */
  readonly repetitionPenalty?: number | undefined;
}

/** @throws GraftError 'usage' for a value outside its range */
export function checkSampling({ temperature = 0, topK, topP, minP, repetitionPenalty }: SamplingOptions): void {
  const wrong = (name: string, rule: string, value: number) => {
    throw new GraftError('usage', `${name} must be ${rule}, and is ${value}`, { place: name });
  };
  if (!(temperature >= 0)) wrong('temperature', '0 or more', temperature);
  if (topK !== undefined && !(Number.isInteger(topK) && topK > 0)) wrong('top-k', 'a whole number above 0', topK);
  if (topP !== undefined && !(topP > 0 && topP <= 1)) wrong('top-p', 'above 0 and at most 1', topP);
  if (minP !== undefined && !(minP >= 0 && minP <= 1)) wrong('min-p', 'between 0 and 1', minP);
  if (repetitionPenalty !== undefined && !(repetitionPenalty > 0)) wrong('repetition-penalty', 'above 0', repetitionPenalty);
}

export function likeliest(logits: Float32Array): number {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i]! > logits[best]!) best = i;
  return best;
}

/**
 * The next token.
 * @param logits [V]; changed in place by the repetition penalty
 * @param seen ids of prompt and answer so far
 * @param random a number in [0, 1)
 */
export function sample(logits: Float32Array, seen: Iterable<number>, options: SamplingOptions, random: () => number): number {
  const { temperature = 0, topK, topP, minP, repetitionPenalty } = options;
  if (repetitionPenalty !== undefined && repetitionPenalty !== 1) {
    for (const id of new Set(seen)) logits[id] = logits[id]! > 0 ? logits[id]! / repetitionPenalty : logits[id]! * repetitionPenalty;
  }
  if (temperature === 0) return likeliest(logits);

  // Candidates by falling logit; without a cut that is the whole vocabulary, in any order.
  let ids = topK === undefined ? Array.from(logits.keys()) : best(logits, topK);
  const top = logits[likeliest(logits)]!;
  const weightOf = (id: number) => Math.exp((logits[id]! - top) / temperature);
  if (topP !== undefined && topP < 1) {
    ids.sort((a, b) => logits[b]! - logits[a]!);
    const total = ids.reduce((sum, id) => sum + weightOf(id), 0);
    let sum = 0;
    const stop = ids.findIndex((id) => {
      sum += weightOf(id);
      return sum >= topP * total;
    });
    ids = ids.slice(0, stop < 0 ? ids.length : stop + 1);
  }
  // The likeliest has weight 1, so a share of its probability is that share of 1.
  if (minP !== undefined && minP > 0) ids = ids.filter((id) => weightOf(id) >= minP);

  let at = random() * ids.reduce((sum, id) => sum + weightOf(id), 0);
  for (const id of ids) {
    at -= weightOf(id);
    if (at < 0) return id;
  }
  return ids.at(-1)!;
}

/** The k largest, by a heap with the smallest of them on top: O(V log k). */
function best(logits: Float32Array, k: number): number[] {
  const heap: number[] = [];
  const less = (i: number, j: number) => logits[heap[i]!]! < logits[heap[j]!]!;
  const swap = (i: number, j: number) => {
    [heap[i], heap[j]] = [heap[j]!, heap[i]!];
  };
  const sink = (from: number) => {
    for (let i = from; ; ) {
      let least = i;
      for (const child of [2 * i + 1, 2 * i + 2]) if (child < heap.length && less(child, least)) least = child;
      if (least === i) return;
      swap(i, least);
      i = least;
    }
  };
  for (let id = 0; id < logits.length; id++) {
    if (heap.length < k) {
      heap.push(id);
      for (let i = heap.length - 1; i > 0 && less(i, (i - 1) >> 1); i = (i - 1) >> 1) swap(i, (i - 1) >> 1);
    } else if (logits[id]! > logits[heap[0]!]!) {
      heap[0] = id;
      sink(0);
    }
  }
  return heap.sort((a, b) => logits[b]! - logits[a]!);
}
