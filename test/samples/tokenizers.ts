/** Golden tokenizers, as they are and changed. */
import { readFileSync } from 'node:fs';
import { golden } from '../support.ts';

/** The contents of a golden tokenizer.json. */
export const tokenizerJson = (name: string) =>
  JSON.parse(readFileSync(golden('tokenizer', `${name}.json`), 'utf8')) as Record<string, Record<string, unknown>>;

/** The tokenizer with every merge that SentencePiece's scores give, as transformers converts it; the golden has one for each token. */
export function withAllMerges(name: string) {
  const tokenizer = tokenizerJson(name);
  const { model, added_tokens: added } = tokenizer as unknown as {
    model: { vocab: Record<string, number>; merges: unknown };
    added_tokens: { content: string }[];
  };
  const vocab = new Map(Object.entries(model.vocab).filter(([token]) => !/^<0x/.test(token)));
  for (const { content } of added) vocab.delete(content);
  model.merges = [...vocab]
    .sort(([, a], [, b]) => a - b)
    .flatMap(([token]) =>
      Array.from({ length: token.length - 1 }, (_, i) => [token.slice(0, i + 1), token.slice(i + 1)])
        .filter((parts) => parts.every((part) => vocab.has(part)))
        .reverse(),
    );
  return tokenizer;
}
