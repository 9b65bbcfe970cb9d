import {
  type JsonObject,
  type SplitBehavior,
  splitBehaviors,
  splitText,
  toByteChars,
  tokenizerError,
  toRegExp,
} from './component.ts';
import { PUNCTUATION, WHITE_SPACE } from './unicode.ts';

/**
 * Splits normalised text into pieces for the model; joined, they are the text except for characters that a step removes or
 * prepends.
 * @param atStart whether `text` is the beginning of the text to encode
 */
export type PreTokenizer = (text: string, atStart: boolean) => string[];

/** GPT-2's pattern. Source: openai/gpt-2 `encoder.py`. */
const GPT2 =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;
const WORDS =
  /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]+|[^\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}\p{White_Space}]+/gu;

interface Step {
  readonly run: PreTokenizer;
  /** Whether the step ends by writing each piece as byte characters, which `run` leaves to the caller. */
  readonly byteLevel?: boolean;
}

const splitAt =
  (pattern: RegExp, behavior: SplitBehavior, invert = false): PreTokenizer =>
  (text) =>
    splitText(text, pattern, behavior, invert);

function behaviorOf(config: JsonObject, place: string, fallback?: SplitBehavior): SplitBehavior {
  const behavior = (config.behavior ?? fallback) as SplitBehavior;
  if (!splitBehaviors.includes(behavior)) {
    const allowed = splitBehaviors.join(', ');
    throw tokenizerError(place, `The behavior ${JSON.stringify(config.behavior)} is not one of ${allowed}`);
  }
  return behavior;
}

function byteLevel(config: JsonObject): PreTokenizer {
  const { add_prefix_space: addPrefixSpace = true, use_regex: useRegex = true } = config;
  return (text) => {
    const prefixed = addPrefixSpace && !text.startsWith(' ') ? ` ${text}` : text;
    return useRegex ? splitText(prefixed, GPT2, 'Isolated') : [prefixed];
  };
}

function metaspace(config: JsonObject, place: string): PreTokenizer {
  const mark = (config.replacement as string) ?? '▁';
  // Before tokenizers 0.15 the scheme was a boolean.
  const scheme = (config.prepend_scheme as string) ?? (config.add_prefix_space === false ? 'never' : 'always');
  const pattern = toRegExp({ String: mark }, place);
  return (text, atStart) => {
    let marked = text.replaceAll(' ', mark);
    if ((scheme === 'always' || (scheme === 'first' && atStart)) && !marked.startsWith(mark)) marked = mark + marked;
    return config.split === false ? [marked] : splitText(marked, pattern, 'MergedWithNext');
  };
}

function makeStep(config: JsonObject, place: string): Step {
  switch (config.type) {
    case 'Sequence': {
      const steps = ((config.pretokenizers ?? []) as JsonObject[]).map((step) => makeStep(step, place));
      const last = steps.at(-1);
      const runs = steps.map(
        (step): PreTokenizer =>
          step.byteLevel && step !== last ? (text, atStart) => step.run(text, atStart).map(toByteChars) : step.run,
      );
      const run: PreTokenizer = (text, atStart) =>
        runs.reduce((pieces, next) => pieces.flatMap((piece, i) => next(piece, atStart && i === 0)), [text]);
      return { run: runs.length === 1 ? runs[0]! : run, byteLevel: last?.byteLevel ?? false };
    }
    case 'ByteLevel':
      return { run: byteLevel(config), byteLevel: true };
    case 'Split':
      return { run: splitAt(toRegExp(config.pattern, place), behaviorOf(config, place), config.invert === true) };
    case 'Metaspace':
      return { run: metaspace(config, place) };
    case 'Digits':
      return { run: splitAt(/\p{N}/gu, config.individual_digits === true ? 'Isolated' : 'Contiguous') };
    case 'Punctuation':
      return { run: splitAt(PUNCTUATION, behaviorOf(config, place, 'Isolated')) };
    case 'Whitespace':
      return { run: (text) => text.match(WORDS) ?? [] };
    case 'WhitespaceSplit':
      return { run: splitAt(WHITE_SPACE, 'Removed') };
    case 'CharDelimiterSplit':
      return { run: splitAt(toRegExp({ String: config.delimiter }, place), 'Removed') };
    case 'BertPreTokenizer':
      return {
        run: (text) =>
          splitText(text, WHITE_SPACE, 'Removed').flatMap((word) => splitText(word, PUNCTUATION, 'Isolated')),
      };
    case 'FixedLength':
      return { run: splitAt(new RegExp(`[^]{1,${config.length}}`, 'gu'), 'Isolated') };
    default:
      throw tokenizerError(place, `Pre-tokenizers of type ${JSON.stringify(config.type)} are not supported`);
  }
}

/**
 * The `pre_tokenizer` of tokenizer.json.
 * @returns the pre-tokenizer, and whether the model sees the pieces as byte characters; that conversion is left to the
 *   caller, who has the ids of many pieces cached
 * @throws GraftError `input` for a type that is not supported
 */
export function makePreTokenizer(config: JsonObject | null | undefined, place: string): Required<Step> {
  const step: Step = config ? makeStep(config, place) : { run: (text) => [text] };
  return { run: step.run, byteLevel: step.byteLevel ?? false };
}
