import { type JsonObject, type Normalizer, toByteChars, tokenizerError, toRegExp } from './component.ts';
import { precompiled } from './precompiled.ts';
import { ASCII, CONTROLS, MARKS, NEW_FORMS, NONSPACING, WHITE_SPACE } from './unicode.ts';

/** Lower case as in Rust, character by character; JavaScript lower-cases a final Σ by its neighbours. */
const lower = (text: string): string =>
  text.includes('Σ')
    ? text
        .split('Σ')
        .map((part) => part.toLowerCase())
        .join('σ')
    : text.toLowerCase();

/** Normalisation to a Unicode normal form; ASCII text is in all of them. */
const unicodeForm =
  (name: 'NFC' | 'NFD' | 'NFKC' | 'NFKD'): Normalizer =>
  (text) => {
    if (ASCII.test(text)) return text;
    if (!NEW_FORMS.test(text)) return text.normalize(name);
    return text
      .split(NEW_FORMS)
      .map((part, i) => (i % 2 === 1 ? part : part.normalize(name)))
      .join('');
  };

const CHINESE =
  /[\u4e00-\u9fff\u3400-\u4dbf\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b920}-\u{2ceaf}\uf900-\ufaff\u{2f800}-\u{2fa1f}]/gu;

function bert(config: JsonObject): Normalizer {
  const { clean_text: clean = true, handle_chinese_chars: chinese = true, lowercase = true } = config;
  const stripAccents = config.strip_accents ?? lowercase;
  return (text) => {
    let out = text;
    if (clean) out = out.replace(CONTROLS, '').replace(WHITE_SPACE, ' ');
    if (chinese) out = out.replace(CHINESE, ' $& ');
    if (stripAccents) out = unicodeForm('NFD')(out).replace(NONSPACING, '');
    return lowercase ? lower(out) : out;
  };
}

/** Source: `normalizers/unicode.rs` of huggingface/tokenizers, after SentencePiece's nmt rules. */
const NMT_DROPPED = /[\u0001-\u0008\u000b\u000e-\u001f\u007f\u008f\u009f]/g;
const NMT_SPACES = /[\u0009\u000a\u000c\u000d\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd]/g;

/**
 * The `normalizer` of tokenizer.json; undefined where it changes nothing.
 * @throws GraftError `input` for a type that is not supported
 */
export function makeNormalizer(config: JsonObject | null | undefined, place: string): Normalizer | undefined {
  if (!config) return undefined;
  switch (config.type) {
    case 'Sequence': {
      const normalizers = (config.normalizers as JsonObject[])
        .map((normalizer) => makeNormalizer(normalizer, place))
        .filter((normalizer) => normalizer !== undefined);
      if (normalizers.length === 0) return undefined;
      return (text) => normalizers.reduce((normal, normalize) => normalize(normal), text);
    }
    case 'NFC':
    case 'NFD':
    case 'NFKC':
    case 'NFKD':
      return unicodeForm(config.type);
    case 'Lowercase':
      return lower;
    case 'Prepend':
      return (text) => (text === '' ? '' : (config.prepend as string) + text);
    case 'Replace': {
      const { String: searched } = (config.pattern ?? {}) as JsonObject;
      const content = config.content as string;
      if (typeof searched === 'string' && searched !== '') {
        const escaped = content.replaceAll('$', '$$$$');
        return (text) => text.replaceAll(searched, escaped);
      }
      const pattern = toRegExp(config.pattern, place);
      return (text) => text.replace(pattern, () => content);
    }
    case 'Strip': {
      const { strip_left: left = true, strip_right: right = true } = config;
      return (text) => {
        const inner = left ? text.replace(/^\p{White_Space}+/u, '') : text;
        return right ? inner.replace(/(?<!\p{White_Space})\p{White_Space}+$/u, '') : inner;
      };
    }
    case 'StripAccents':
      return (text) => text.replace(MARKS, '');
    case 'BertNormalizer':
      return bert(config);
    case 'Nmt':
      return (text) => text.replace(NMT_DROPPED, '').replace(NMT_SPACES, ' ');
    case 'Precompiled':
      return precompiled(config.precompiled_charsmap as string | null, place);
    case 'ByteLevel':
      return toByteChars;
    default:
      throw tokenizerError(place, `Normalizers of type ${JSON.stringify(config.type)} are not supported`);
  }
}
