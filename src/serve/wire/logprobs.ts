import type { Tokenizer } from '../../data/index.ts';
import type { TokenLogprob } from '../../generate/index.ts';

/** A log-probability that JSON has a number for. */
const finite = (logprob: number): number => Math.max(logprob, -9999);

/** A token as a text: its bytes, where they are whole characters. */
const textOf = (tokenizer: Tokenizer, id: number): string => Buffer.from(tokenizer.bytesOf(id)).toString();

const entryOf = (tokenizer: Tokenizer, { id, logprob }: { readonly id: number; readonly logprob: number }) => ({
  token: textOf(tokenizer, id),
  logprob: finite(logprob),
  bytes: [...tokenizer.bytesOf(id)],
});

/** As chat completions give them. */
export const chatLogprobs = (tokenizer: Tokenizer, logprobs: readonly TokenLogprob[] | undefined) =>
  logprobs && {
    content: logprobs.map((token) => ({
      ...entryOf(tokenizer, token),
      top_logprobs: token.top.map((other) => entryOf(tokenizer, other)),
    })),
    refusal: null,
  };

/** A token as completions name it, which have no bytes beside it: a part of a character as `bytes:\\xe2\\x80`. */
function nameOf(tokenizer: Tokenizer, id: number): string {
  const bytes = Buffer.from(tokenizer.bytesOf(id));
  const text = bytes.toString();
  if (Buffer.from(text).equals(bytes)) return text;
  return `bytes:${[...bytes].map((byte) => `\\x${byte.toString(16).padStart(2, '0')}`).join('')}`;
}

/** The log-probabilities of one answer as completions give them, from its beginning on. */
export class CompletionLogprobs {
  readonly #tokenizer: Tokenizer;
  readonly #decoder;
  /** Characters of the answer so far. */
  #offset = 0;

  constructor(tokenizer: Tokenizer) {
    this.#tokenizer = tokenizer;
    this.#decoder = tokenizer.stream({ skipSpecialTokens: true });
  }

  /** Those of the tokens that come next; null for none. */
  next(logprobs: readonly TokenLogprob[] | undefined) {
    if (!logprobs) return null;
    return {
      tokens: logprobs.map(({ id }) => nameOf(this.#tokenizer, id)),
      token_logprobs: logprobs.map(({ logprob }) => finite(logprob)),
      top_logprobs: logprobs.map(({ top }) =>
        Object.fromEntries(top.map(({ id, logprob }) => [nameOf(this.#tokenizer, id), finite(logprob)])),
      ),
      /** Where each token's text begins, or the character that it is a part of. */
      text_offset: logprobs.map(({ id }) => {
        const piece = this.#decoder.push(id);
        this.#offset += piece.length;
        // A character that stays incomplete comes with the token after it.
        const text = textOf(this.#tokenizer, id);
        return this.#offset - (piece.endsWith(text) ? text.length : piece.length);
      }),
    };
  }
}
