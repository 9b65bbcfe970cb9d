import { decodeUtf8, fromByteChars, type JsonObject, tokenizerError, toRegExp } from './component.ts';

/** Maps tokens to pieces of text; joined, these are the decoded text. */
export type Decoder = (tokens: readonly string[]) => string[];

const BYTE_TOKEN = /^<0x([0-9A-Fa-f]{2})>$/;
const strictUtf8 = new TextDecoder('utf-8', { ignoreBOM: true, fatal: true });

/** Decodes each run of byte tokens as UTF-8; where it is not valid UTF-8, each becomes U+FFFD. */
function decodeByteTokens(tokens: readonly string[]): string[] {
  const out: string[] = [];
  let bytes: number[] = [];
  const flush = () => {
    if (bytes.length === 0) return;
    try {
      out.push(strictUtf8.decode(Uint8Array.from(bytes)));
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

/** Removes the spaces that English tokenization puts before punctuation; transformers' `clean_up_tokenization`. */
export const cleanUp = (text: string): string =>
  text
    .replaceAll(' .', '.')
    .replaceAll(' ?', '?')
    .replaceAll(' !', '!')
    .replaceAll(' ,', ',')
    .replaceAll(" ' ", "'")
    .replaceAll(" n't", "n't")
    .replaceAll(" 'm", "'m")
    .replaceAll(" 's", "'s")
    .replaceAll(" 've", "'ve")
    .replaceAll(" 're", "'re");

/** Removes up to `start` and `stop` characters `content` from the two ends of a token. */
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
 * @throws GraftError `input` for a type that is not supported
 */
export function makeDecoder(config: JsonObject | null | undefined, place: string): Decoder {
  if (!config) return (tokens) => [tokens.join(' ')];
  switch (config.type) {
    case 'Sequence': {
      const decoders = (config.decoders as JsonObject[]).map((decoder) => makeDecoder(decoder, place));
      return (tokens) => decoders.reduce<string[]>((pieces, decode) => decode(pieces), [...tokens]);
    }
    case 'ByteLevel':
      return (tokens) => [decodeUtf8(tokens.flatMap(fromByteChars))];
    case 'ByteFallback':
      return decodeByteTokens;
    case 'Fuse':
      return (tokens) => [tokens.join('')];
    case 'Replace': {
      const [pattern, content] = [toRegExp(config.pattern, place), config.content as string];
      return (tokens) => tokens.map((token) => token.replace(pattern, () => content));
    }
    case 'Strip': {
      const { content = ' ', start = 0, stop = 0 } = config as { content?: string; start?: number; stop?: number };
      return (tokens) => tokens.map((token) => strip(token, content, start, stop));
    }
    case 'Metaspace': {
      const mark = (config.replacement as string) ?? '▁';
      const scheme = config.prepend_scheme ?? (config.add_prefix_space === false ? 'never' : 'always');
      return (tokens) => tokens.map((token, i) => token.replaceAll(mark, i === 0 && scheme !== 'never' ? '' : ' '));
    }
    case 'WordPiece': {
      const { prefix = '##', cleanup = true } = config as { prefix?: string; cleanup?: boolean };
      return (tokens) =>
        tokens.map((token, i) => {
          const joined = i === 0 ? token : token.startsWith(prefix) ? token.slice(prefix.length) : ` ${token}`;
          return cleanup ? cleanUp(joined).replaceAll(' do not', " don't") : joined;
        });
    }
    case 'BPEDecoder': {
      const suffix = (config.suffix as string) ?? '</w>';
      return (tokens) => tokens.map((token, i) => token.replaceAll(suffix, i === tokens.length - 1 ? '' : ' '));
    }
    default:
      throw tokenizerError(place, `Decoders of type ${JSON.stringify(config.type)} are not supported`);
  }
}
