import { type Cut, cuts, cutText, type Part, toByteChars, tokenizerError, toRegExp } from './component.ts';
import { PUNCTUATION, WHITE_SPACE } from './unicode.ts';

/**
 * Cuts normalised text into pieces for the model; joined they are the text, but for what a step removes or puts before.
 * @param atStart whether `text` is the beginning of what was given to encode
 */
export type PreTokenizer = (text: string, atStart: boolean) => string[];

/** GPT-2's pattern. Source: openai/gpt-2 `encoder.py`. */
const GPT2 =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;
const WORDS =
  /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]+|[^\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}\p{White_Space}]+/gu;

interface Step {
  readonly run: PreTokenizer;
  /** The step ends by writing each piece as byte characters, which `run` leaves to the caller. */
  readonly bytes?: boolean;
}

const cutting =
  (at: RegExp, cut: Cut, invert = false): PreTokenizer =>
  (text) =>
    cutText(text, at, cut, invert);

function cutOf(part: Part, place: string, fallback?: Cut): Cut {
  const cut = (part.behavior ?? fallback) as Cut;
  if (!cuts.includes(cut))
    throw tokenizerError(place, `The behavior ${JSON.stringify(part.behavior)} is not one of ${cuts.join(', ')}`);
  return cut;
}

function byteLevel(part: Part): PreTokenizer {
  const { add_prefix_space: prefix = true, use_regex: useRegex = true } = part;
  return (text) => {
    const whole = prefix && !text.startsWith(' ') ? ` ${text}` : text;
    return useRegex ? cutText(whole, GPT2, 'Isolated') : [whole];
  };
}

function metaspace(part: Part, place: string): PreTokenizer {
  const mark = (part.replacement as string) ?? '▁';
  // Before tokenizers 0.15 the scheme was a boolean.
  const scheme = (part.prepend_scheme as string) ?? (part.add_prefix_space === false ? 'never' : 'always');
  const at = toRegExp({ String: mark }, place);
  return (text, atStart) => {
    let whole = text.replaceAll(' ', mark);
    if ((scheme === 'always' || (scheme === 'first' && atStart)) && !whole.startsWith(mark)) whole = mark + whole;
    return part.split === false ? [whole] : cutText(whole, at, 'MergedWithNext');
  };
}

function makeStep(part: Part, place: string): Step {
  switch (part.type) {
    case 'Sequence': {
      const steps = ((part.pretokenizers ?? []) as Part[]).map((p) => makeStep(p, place));
      const last = steps.at(-1);
      const runs = steps.map(
        (s): PreTokenizer => (s.bytes && s !== last ? (t, a) => s.run(t, a).map(toByteChars) : s.run),
      );
      const run: PreTokenizer = (text, atStart) =>
        runs.reduce((pieces, next) => pieces.flatMap((p, i) => next(p, atStart && i === 0)), [text]);
      return { run: runs.length === 1 ? runs[0]! : run, bytes: last?.bytes ?? false };
    }
    case 'ByteLevel':
      return { run: byteLevel(part), bytes: true };
    case 'Split':
      return { run: cutting(toRegExp(part.pattern, place), cutOf(part, place), part.invert === true) };
    case 'Metaspace':
      return { run: metaspace(part, place) };
    case 'Digits':
      return { run: cutting(/\p{N}/gu, part.individual_digits === true ? 'Isolated' : 'Contiguous') };
    case 'Punctuation':
      return { run: cutting(PUNCTUATION, cutOf(part, place, 'Isolated')) };
    case 'Whitespace':
      return { run: (text) => text.match(WORDS) ?? [] };
    case 'WhitespaceSplit':
      return { run: cutting(WHITE_SPACE, 'Removed') };
    case 'CharDelimiterSplit':
      return { run: cutting(toRegExp({ String: part.delimiter }, place), 'Removed') };
    case 'BertPreTokenizer':
      return {
        run: (text) => cutText(text, WHITE_SPACE, 'Removed').flatMap((word) => cutText(word, PUNCTUATION, 'Isolated')),
      };
    case 'FixedLength':
      return { run: cutting(new RegExp(`[^]{1,${part.length}}`, 'gu'), 'Isolated') };
    default:
      throw tokenizerError(place, `Pre-tokenizers of type ${JSON.stringify(part.type)} are not known`);
  }
}

/**
 * The `pre_tokenizer` of tokenizer.json.
 * @returns the cutting, and whether the model sees the pieces as byte characters; that is left to the caller, who knows
 *   many pieces already
 */
export function makePreTokenizer(part: Part | null | undefined, place: string): Required<Step> {
  const step = part ? makeStep(part, place) : { run: (text: string) => [text] };
  return { run: step.run, bytes: step.bytes ?? false };
}
