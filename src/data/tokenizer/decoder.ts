import { fromByteChars, type Part, textOf, tokenizerError, toRegExp } from './component.ts';

/** Tokens to the pieces of text that, joined, are their text. */
export type Decoder = (tokens: readonly string[]) => string[];

const BYTE_TOKEN = /^<0x([0-9A-Fa-f]{2})>$/;
const strict = new TextDecoder('utf-8', { ignoreBOM: true, fatal: true });

/** Byte tokens in a row become the text that they spell, or one U+FFFD each when they spell none. */
function byteFallback(tokens: readonly string[]): string[] {
  const out: string[] = [];
  let bytes: number[] = [];
  const flush = () => {
    if (bytes.length === 0) return;
    try {
      out.push(strict.decode(Uint8Array.from(bytes)));
    } catch {
      for (const _ of bytes) out.push('\ufffd');
    }
    bytes = [];
  };
  for (const token of tokens) {
    const byte = BYTE_TOKEN.exec(token);
    if (byte) bytes.push(Number.parseInt(byte[1]!, 16));
    else {
      flush();
      out.push(token);
    }
  }
  flush();
  return out;
}

/** Undoes the spaces that splitting English put between words. */
const tidy = (text: string): string =>
  text
    .replaceAll(' .', '.')
    .replaceAll(' ?', '?')
    .replaceAll(' !', '!')
    .replaceAll(' ,', ',')
    .replaceAll(" ' ", "'")
    .replaceAll(" n't", "n't")
    .replaceAll(" 'm", "'m")
    .replaceAll(' do not', " don't")
    .replaceAll(" 's", "'s")
    .replaceAll(" 've", "'ve")
    .replaceAll(" 're", "'re");

function strip(token: string, content: string, start: number, stop: number): string {
  const chars = [...token];
  let [from, to] = [0, chars.length];
  while (from < start && chars[from] === content) from++;
  while (chars.length - to < stop && to > from && chars[to - 1] === content) to--;
  return chars.slice(from, to).join('');
}

/**
 * The `decoder` of tokenizer.json; without one, tokens are joined by spaces.
 * Source: `decoders/` and `pre_tokenizers/{byte_level,metaspace}.rs` of huggingface/tokenizers.
 * @throws GraftError `input` for a kind that is not known
 */
export function makeDecoder(part: Part | null | undefined, place: string): Decoder {
  if (!part) return (tokens) => [tokens.join(' ')];
  switch (part.type) {
    case 'Sequence': {
      const all = (part.decoders as Part[]).map((p) => makeDecoder(p, place));
      return (tokens) => all.reduce<string[]>((t, decode) => decode(t), [...tokens]);
    }
    case 'ByteLevel':
      return (tokens) => [textOf(tokens.flatMap(fromByteChars))];
    case 'ByteFallback':
      return byteFallback;
    case 'Fuse':
      return (tokens) => [tokens.join('')];
    case 'Replace': {
      const [pattern, content] = [toRegExp(part.pattern, place), part.content as string];
      return (tokens) => tokens.map((token) => token.replace(pattern, () => content));
    }
    case 'Strip': {
      const { content = ' ', start = 0, stop = 0 } = part as { content?: string; start?: number; stop?: number };
      return (tokens) => tokens.map((token) => strip(token, content, start, stop));
    }
    case 'Metaspace': {
      const mark = (part.replacement as string) ?? '▁';
      const scheme = part.prepend_scheme ?? (part.add_prefix_space === false ? 'never' : 'always');
      return (tokens) => tokens.map((token, i) => token.replaceAll(mark, i === 0 && scheme !== 'never' ? '' : ' '));
    }
    case 'WordPiece': {
      const { prefix = '##', cleanup = true } = part as { prefix?: string; cleanup?: boolean };
      return (tokens) =>
        tokens.map((token, i) => {
          const joined = i === 0 ? token : token.startsWith(prefix) ? token.slice(prefix.length) : ` ${token}`;
          return cleanup ? tidy(joined) : joined;
        });
    }
    case 'BPEDecoder': {
      const suffix = (part.suffix as string) ?? '</w>';
      return (tokens) => tokens.map((token, i) => token.replaceAll(suffix, i === tokens.length - 1 ? '' : ' '));
    }
    default:
      throw tokenizerError(place, `Decoders of type ${JSON.stringify(part.type)} are not known`);
  }
}
