import type { GenerationDelta, GenerationEnd, GenerationRequest } from '../generate/index.ts';
import { RequestError, shuttingDown } from './errors.ts';
import type { Generator, Service } from './service.ts';
import type { Sampling } from './wire/index.ts';

/** What happens to one of the answers of a request. */
export type AnswerEvent =
  | { readonly index: number; readonly type: 'delta'; readonly delta: GenerationDelta }
  | { readonly index: number; readonly type: 'end'; readonly end: GenerationEnd };

/** What the answers of a request have in common. */
export interface AnswerPlan {
  readonly generator: Generator;
  readonly sampling: Sampling;
  readonly maxNewTokens: number;
  /** Whether the request names them: what the context has no room for is then refused. */
  readonly requireRoom: boolean;
  readonly logprobs: number | undefined;
  readonly grammar?: string | undefined;
  /** Of the API key, which has a share of the machine of its own for each adapter; undefined where there are no keys. */
  readonly keyId: string | undefined;
}

/** The requests of a plan: `n` for each prompt, each with a seed of its own. */
export const requestsOf = (
  { generator: { adapter, mixture }, sampling, maxNewTokens, requireRoom, logprobs, grammar, keyId }: AnswerPlan,
  prompts: readonly (readonly number[])[],
  n: number,
  { answerSeconds }: Service['limits'],
): GenerationRequest[] =>
  prompts.flatMap((promptIds) =>
    Array.from({ length: n }, (_, i) => ({
      ...sampling,
      promptIds,
      adapter,
      mixture,
      maxNewTokens,
      requireRoom,
      logprobs,
      grammar,
      seed: sampling.seed + i,
      deadlineMs: answerSeconds * 1000,
      ...(keyId !== undefined && { priorityKey: `${keyId} ${adapter ?? ''}` }),
    })),
  );

const tooSlow = () =>
  new RequestError(408, 'The client reads more slowly than the answer is made.', { code: 'slow_client' });

/**
 * Runs requests at once, and tells what happens to each, in the order in which it happens. Leaving the iteration ends them all, and so does
 * one that takes the pieces more slowly than they come, once many wait.
 * @throws what the engine throws for one of them; RequestError 503 and 504 for answers that were cut
 */
export async function* answers(
  { metrics, limits }: Service,
  { generator: { engine, name } }: AnswerPlan,
  requests: readonly GenerationRequest[],
  signal: AbortSignal,
): AsyncGenerator<AnswerEvent, void, undefined> {
  const left = new AbortController();
  const either = AbortSignal.any([signal, left.signal]);
  const events: AnswerEvent[] = [];
  let failure: { readonly error: unknown } | undefined;
  let open = requests.length;
  let wake = () => {};
  const follow = async (request: GenerationRequest, index: number) => {
    try {
      const answer = engine.submit(request, { signal: either });
      for await (const delta of answer) {
        if (events.length >= limits.unreadPieces) throw tooSlow();
        events.push({ index, type: 'delta', delta });
        wake();
      }
      const end = await answer;
      metrics.answered(name, end);
      if (end.reason === 'interrupted') throw shuttingDown();
      if (end.reason === 'deadline')
        throw new RequestError(504, 'The answer took longer than this server lets one take.', { code: 'deadline' });
      events.push({ index, type: 'end', end });
    } catch (error) {
      failure ??= { error };
      left.abort();
    }
    open--;
    wake();
  };
  for (const [index, request] of requests.entries()) void follow(request, index);
  try {
    for (;;) {
      for (let event = events.shift(); event; event = events.shift()) yield event;
      if (failure) throw failure.error;
      if (open === 0) return;
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
  } finally {
    left.abort();
  }
}

/** What a request cost, as OpenAI counts it: each prompt once. */
export class Usage {
  readonly #prompts = new Map<number, { readonly prompt: number; readonly cached: number }>();
  #completion = 0;
  readonly #n: number;

  /** @param n answers to each prompt */
  constructor(n: number) {
    this.#n = n;
  }

  add(index: number, { promptTokens, cachedTokens, newTokens }: GenerationEnd): void {
    const prompt = Math.floor(index / this.#n);
    // Further answers find what the first one has left.
    const cached = Math.min(cachedTokens, this.#prompts.get(prompt)?.cached ?? cachedTokens);
    this.#prompts.set(prompt, { prompt: promptTokens, cached });
    this.#completion += newTokens;
  }

  toJSON() {
    const sum = (of: 'prompt' | 'cached') =>
      [...this.#prompts.values()].reduce((total, tokens) => total + tokens[of], 0);
    return {
      prompt_tokens: sum('prompt'),
      completion_tokens: this.#completion,
      total_tokens: sum('prompt') + this.#completion,
      prompt_tokens_details: { cached_tokens: sum('cached') },
    };
  }
}

/** OpenAI's word for why an answer ended. */
export const finishReason = ({ reason }: Pick<GenerationEnd, 'reason'>): 'stop' | 'length' =>
  reason === 'length' ? 'length' : 'stop';
