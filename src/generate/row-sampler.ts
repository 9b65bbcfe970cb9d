import { mixSeed } from '../tensor/index.ts';
import type { GenerationRequest, TokenFilter, TokenLogprob } from './request.ts';
import { largestIds, type SampledText, sample } from './sampling.ts';

/** A token that was sampled. */
export interface Sampled {
  readonly id: number;
  readonly logprob?: TokenLogprob;
}

/** Number i of the draws of a seed, in [0, 1): it depends on nothing else, so a row that is computed again goes on as it was. */
const drawOf = (seed: number, i: number): number => Number(mixSeed(seed, i) >> 11n) / 2 ** 53;

/** Chooses the tokens of one answer. */
export class RowSampler {
  readonly #request: GenerationRequest;
  readonly #filter: TokenFilter | undefined;
  readonly #text: { readonly seen: Set<number>; readonly counts: Map<number, number> };
  #drawn = 0;

  constructor(request: GenerationRequest, filter?: TokenFilter) {
    this.#request = request;
    this.#filter = filter;
    this.#text = { seen: new Set(request.promptIds), counts: new Map() };
  }

  /** Whether it takes the likeliest token and needs to know nothing else of the logits. */
  get takesLikeliest(): boolean {
    const { temperature = 0, repetitionPenalty = 1, presencePenalty = 0, frequencyPenalty = 0 } = this.#request;
    const { logitBias, logprobs } = this.#request;
    const isPlain = repetitionPenalty === 1 && presencePenalty === 0 && frequencyPenalty === 0 && !logitBias;
    return temperature === 0 && isPlain && logprobs === undefined && !this.#filter;
  }

  /** @param logits [V]; changed */
  pick(logits: Float32Array): Sampled {
    const { logprobs, seed = 0 } = this.#request;
    const before = logprobs === undefined ? undefined : logits.slice();
    const text: SampledText = this.#text;
    const id = sample(logits, text, this.#request, () => drawOf(seed, this.#drawn), this.#filter?.allowed());
    return { id, ...(before && { logprob: logprobOf(before, id, logprobs!) }) };
  }

  /** Takes a token as the answer's next. */
  accept(id: number): void {
    this.#drawn++;
    this.#text.seen.add(id);
    this.#text.counts.set(id, (this.#text.counts.get(id) ?? 0) + 1);
    this.#filter?.accept(id);
  }
}

function logprobOf(logits: Float32Array, id: number, count: number): TokenLogprob {
  let largest = -Infinity;
  for (let i = 0; i < logits.length; i++) largest = Math.max(largest, logits[i]!);
  let sum = 0;
  for (let i = 0; i < logits.length; i++) sum += Math.exp(logits[i]! - largest);
  const total = largest + Math.log(sum);
  const top = count === 0 ? [] : largestIds(logits, Math.min(count, logits.length));
  return { id, logprob: logits[id]! - total, top: top.map((i) => ({ id: i, logprob: logits[i]! - total })) };
}
