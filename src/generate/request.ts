/** What is asked of batched generation, and what it answers. */
import type { SamplingOptions } from './sampling.ts';

/** A request for one continuation. */
export interface GenerationRequest extends SamplingOptions {
  /** Token ids, from a template or a text; not empty. */
  readonly promptIds: readonly number[];
  /** Name of the adapter; absent: the base alone. */
  readonly adapter?: string | undefined;
  /** LoRA adapters whose weighted sum the row uses, in the place of `adapter`. */
  readonly mixture?: readonly WeightedAdapter[] | undefined;
  /** The row's task, among several that share the adapter. Default: the adapter's own. */
  readonly taskNumber?: number | undefined;
  /** Tokens to generate at most. */
  readonly maxNewTokens: number;
  /** Whether it is refused where the context has no room for `maxNewTokens`; else it ends there, as 'length'. Default: false. */
  readonly requireRoom?: boolean | undefined;
  /** The same seed gives the same draws, whoever shares the batch. Default 0. */
  readonly seed?: number | undefined;
  /** The text ends before the first of these, which may be or contain special tokens. */
  readonly stop?: readonly string[] | undefined;
  /** Ids that end the answer. Default: the tokenizer's end-of-text tokens. */
  readonly eosIds?: readonly number[] | undefined;
  /** How many of the likeliest tokens have their log-probability reported beside each token's own; absent: none is reported. */
  readonly logprobs?: number | undefined;
  /** Milliseconds from submission after which the answer ends, as 'deadline'. */
  readonly deadlineMs?: number | undefined;
  /** Whose share of the machine it takes: keys take turns. Default: the adapter's name. */
  readonly priorityKey?: string | undefined;
  /** A grammar that the answer follows, as XGrammar's EBNF. */
  readonly grammar?: string | undefined;
}

/** `data.reason` of the 'usage' error for a request that has more tokens than there is room for. */
export const noRoom = 'no-room';

/** One of several adapters whose weighted sum is used. */
export interface WeightedAdapter {
  /** Its name. */
  readonly name: string;
  /** Its factor. */
  readonly weight: number;
}

/** The log-probability of a token, in nats, and those of the likeliest ones in its place, before temperature and penalties. */
export interface TokenLogprob {
  /** The token. */
  readonly id: number;
  /** In nats. */
  readonly logprob: number;
  /** Likeliest first. */
  readonly top: readonly { readonly id: number; readonly logprob: number }[];
}

/** A piece of an answer: text that is final, and the tokens since the piece before. */
export interface GenerationDelta {
  /** Complete characters that are no part of a stop string; may be empty. */
  readonly text: string;
  /** Their ids. */
  readonly ids: readonly number[];
  /** One for each id, where the request asks for them. */
  readonly logprobs?: readonly TokenLogprob[];
}

/** Why an answer ended: an end token, its length or the context's, a stop string, its caller, or its deadline. */
export type EndReason = 'eos' | 'length' | 'stop' | 'interrupted' | 'deadline';

/** A whole answer. */
export interface GenerationEnd {
  /** Why it ended. */
  readonly reason: EndReason;
  /** The text, without a stop string. */
  readonly text: string;
  /** The tokens, those of a stop string included, an end token not. */
  readonly ids: readonly number[];
  /** One for each id, where the request asks for them. */
  readonly logprobs?: readonly TokenLogprob[];
  /** Tokens of the prompt. */
  readonly promptTokens: number;
  /** Tokens of the prompt whose keys and values another request had left. */
  readonly cachedTokens: number;
  /** Tokens that were generated. */
  readonly newTokens: number;
  /** The stop string that was found. */
  readonly stopString?: string;
  /** When what happened. */
  readonly timings: {
    /** Milliseconds from submission until the first pass. */
    readonly queued: number;
    /** Milliseconds from submission until the first token, or end token, was sampled; 0 where there is none. */
    readonly firstToken: number;
    /** Milliseconds from submission until the end. */
    readonly total: number;
  };
}

/** Which tokens an answer may go on with, such as those of a grammar. Each answer has its own, and disposes it at its end. */
export interface TokenFilter extends Disposable {
  /** One bit for each token: whether it may come next. Token i is bit i & 31 of number i >> 5. */
  allowed(): Int32Array;
  /** Takes the token that was sampled. */
  accept(id: number): void;
  /** Whether the answer is complete. */
  readonly ended: boolean;
}

/** Sequences of this batch key have their adapters in the model's banks, or none: they share passes. */
export const bankKey = 'banks';

/** What a batch knows of the adapter that a request names. */
export interface AdapterOfRequest {
  /** Its number; 0: the base alone. */
  readonly number: number;
  /** `bankKey`, or a key of its own for an adapter that no bank holds. */
  readonly batchKey: string;
  /** What decides keys and values besides the ids: base, the adapter's content, task. */
  readonly contentKey: string;
  /** Virtual tokens that it puts in front of a row. */
  readonly virtual: number;
  readonly taskNumber?: number | undefined;
}
