import type { Tokenizer } from '../data/index.ts';
import { AnswerText } from './answer-text.ts';
import type {
  AdapterOfRequest,
  EndReason,
  GenerationDelta,
  GenerationEnd,
  GenerationRequest,
  TokenFilter,
  TokenLogprob,
} from './request.ts';
import { RowSampler, type Sampled } from './row-sampler.ts';
import { Sequence } from './sequence.ts';

/** The name that a request's tokens are counted under: of its adapter, '' for the base, and one for all mixtures. */
export const nameOf = ({ adapter = '', mixture }: GenerationRequest): string => (mixture ? '(mixture)' : adapter);

/** Who is told of an answer. */
export interface AnswerListener {
  delta(delta: GenerationDelta): void;
  end(end: GenerationEnd): void;
  fail(error: unknown): void;
}

interface AnswerParts {
  readonly request: GenerationRequest;
  readonly adapter: AdapterOfRequest;
  readonly maxNewTokens: number;
  readonly tokenizer: Tokenizer | undefined;
  readonly filter: TokenFilter | undefined;
  readonly listener: AnswerListener;
  /** When it was submitted, in milliseconds. */
  readonly now: number;
}

/** One answer while it is generated: its row, its sampling, its text, and who is told. */
export class Answer {
  readonly sequence: Sequence;
  readonly sampler: RowSampler;
  readonly adapter: AdapterOfRequest;
  readonly #request: GenerationRequest;
  readonly #listener: AnswerListener;
  readonly #filter: TokenFilter | undefined;
  readonly #text: AnswerText | undefined;
  readonly #ids: number[] = [];
  readonly #logprobs: TokenLogprob[] = [];
  /** Ids that the listener has been told. */
  #told = 0;
  #stopString: string | undefined;
  readonly #submitted: number;
  #began: number | undefined;
  #firstToken: number | undefined;

  /** @throws GraftError 'usage' for an empty stop string */
  constructor({ request, adapter, maxNewTokens, tokenizer, filter, listener, now }: AnswerParts) {
    this.#request = request;
    this.adapter = adapter;
    this.#listener = listener;
    this.#filter = filter;
    this.#submitted = now;
    this.#text = tokenizer && new AnswerText(tokenizer, request.stop);
    this.sampler = new RowSampler(request, filter);
    const eosIds = request.eosIds ?? tokenizer?.eosIds ?? [];
    this.sequence = new Sequence({
      promptIds: request.promptIds,
      adapter: adapter.number,
      batchKey: adapter.batchKey,
      contentKey: adapter.contentKey,
      virtual: adapter.virtual,
      shareKey: request.priorityKey ?? nameOf(request),
      maxNewTokens,
      eosIds: new Set(this.#text?.endTokens(eosIds) ?? eosIds),
      deadline: request.deadlineMs === undefined ? undefined : now + request.deadlineMs,
    });
  }

  /** Takes the time of its first pass. */
  began(now: number): void {
    this.#began ??= now;
  }

  /** Takes the time of its first token, which may be an end token. */
  sampled(now: number): void {
    this.#firstToken ??= now;
  }

  /** Takes the next token of the answer. @returns why the answer ends with it, if it does */
  take({ id, logprob }: Sampled): EndReason | undefined {
    this.sampler.accept(id);
    this.#ids.push(id);
    if (logprob) this.#logprobs.push(logprob);
    const step = this.#text?.push(id) ?? { piece: '' };
    if (step.piece !== '' || !this.#text) this.#tell(step.piece);
    if (step.stop !== undefined) {
      this.#stopString = step.stop;
      return 'stop';
    }
    return this.#filter?.ended ? 'eos' : undefined;
  }

  finish(now: number): void {
    this.#filter?.[Symbol.dispose]();
    let reason = this.sequence.ended!;
    if (this.#stopString === undefined && this.#text) {
      const { piece, stop } = this.#text.end();
      if (stop !== undefined) [this.#stopString, reason] = [stop, 'stop'];
      if (piece !== '' || this.#told < this.#ids.length) this.#tell(piece);
    } else if (this.#told < this.#ids.length) this.#tell('');
    this.#listener.end({
      reason,
      text: this.#text?.text ?? '',
      ids: this.#ids,
      ...(this.#request.logprobs !== undefined && { logprobs: this.#logprobs }),
      promptTokens: this.#request.promptIds.length,
      cachedTokens: this.sequence.cachedTokens ?? 0,
      newTokens: this.#ids.length,
      ...(this.#stopString !== undefined && { stopString: this.#stopString }),
      timings: {
        queued: (this.#began ?? now) - this.#submitted,
        firstToken: this.#firstToken === undefined ? 0 : this.#firstToken - this.#submitted,
        total: now - this.#submitted,
      },
    });
  }

  fail(error: unknown): void {
    this.#filter?.[Symbol.dispose]();
    this.#listener.fail(error);
  }

  #tell(text: string): void {
    const ids = this.#ids.slice(this.#told);
    const logprobs = this.#logprobs.slice(this.#told);
    this.#told = this.#ids.length;
    this.#listener.delta({ text, ids, ...(this.#request.logprobs !== undefined && { logprobs }) });
  }
}
