import type { Tokenizer } from '../../data/index.ts';
import type { TokenLogprob } from '../../generate/index.ts';

/** A log-probability that JSON has a number for. */
const finite = (logprob: number): number => Math.max(logprob, -9999);

const entryOf = (tokenizer: Tokenizer, { id, logprob }: { readonly id: number; readonly logprob: number }) => ({
  token: tokenizer.decode([id]),
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

/** As completions give them. @param offset where the text begins, in characters of the answer */
export function completionLogprobs(
  tokenizer: Tokenizer,
  logprobs: readonly TokenLogprob[] | undefined,
  offset: number,
) {
  if (!logprobs) return null;
  const tokens = logprobs.map(({ id }) => tokenizer.decode([id]));
  const offsets: number[] = [];
  for (const [i] of tokens.entries()) offsets.push(i === 0 ? offset : offsets[i - 1]! + tokens[i - 1]!.length);
  return {
    tokens,
    token_logprobs: logprobs.map(({ logprob }) => finite(logprob)),
    top_logprobs: logprobs.map(({ top }) =>
      Object.fromEntries(top.map(({ id, logprob }) => [tokenizer.decode([id]), finite(logprob)])),
    ),
    text_offset: offsets,
  };
}
