/** Offsets of the pieces of a tokenized text in the original text. */
import type { Normalizer } from './component.ts';

/** A normalised text, and for each of its UTF-16 units the start and stop of its source in the original text. */
export interface AlignedText {
  readonly normal: string;
  readonly starts: readonly number[];
  readonly stops: readonly number[];
}

/** Patterns for parts of a text that are normalised alone as they are within it: characters with their marks, else words. */
const partPatterns = [/\P{M}\p{M}*|\p{M}+/gsu, /\s+|\S+/g] as const;

/**
 * Normalises a text and aligns the result with it, by the smallest parts whose normal forms together are that of the text; in
 * the worst case all of the text is one part.
 */
export function alignNormalized(text: string, normalize: Normalizer | undefined): AlignedText {
  const units = Array.from({ length: text.length }, (_, i) => i);
  if (!normalize) return { normal: text, starts: units, stops: units.map((i) => i + 1) };
  const normal = normalize(text);
  // Parts are normalised after a letter, so that a character that the normaliser prepends to a text is not counted with each.
  const anchor = normalize('a');
  for (const pattern of partPatterns) {
    const parts = text.match(pattern) ?? [];
    const forms = parts.map((part) => {
      const form = normalize(`a${part}`);
      return form.startsWith(anchor) ? form.slice(anchor.length) : undefined;
    });
    const joined = forms.join('');
    if (forms.includes(undefined) || !normal.endsWith(joined) || normal.length > joined.length + 1) continue;
    const [starts, stops]: [number[], number[]] = [[], []];
    for (let i = joined.length; i < normal.length; i++) {
      starts.push(0);
      stops.push(0);
    }
    let at = 0;
    parts.forEach((part, i) => {
      for (const _ of Array(forms[i]!.length)) {
        starts.push(at);
        stops.push(at + part.length);
      }
      at += part.length;
    });
    return { normal, starts, stops };
  }
  return {
    normal,
    starts: Array.from({ length: normal.length }, () => 0),
    stops: Array.from({ length: normal.length }, () => text.length),
  };
}

const withSpaces = (text: string) => text.replaceAll('▁', ' ');

/**
 * The position at which a piece begins in the normalised text: `from`, or later where a pre-tokenizer removed characters; one
 * less where the piece begins with a space that a pre-tokenizer prepended.
 */
export function pieceStart(piece: string, normal: string, from: number): number {
  const [text, target] = [withSpaces(normal), withSpaces(piece)];
  if (text.startsWith(target, from)) return from;
  if (target.startsWith(' ') && text.startsWith(target.slice(1), from)) return from - 1;
  const start = text.indexOf(target, from);
  return start < 0 ? from : start;
}

/** By byte of the UTF-8 form of a text: the UTF-16 units at which its character starts and stops. */
export function byteOffsets(text: string): { starts: number[]; stops: number[] } {
  const [starts, stops]: [number[], number[]] = [[], []];
  let at = 0;
  for (const c of text) {
    for (let b = Buffer.byteLength(c); b > 0; b--) {
      starts.push(at);
      stops.push(at + c.length);
    }
    at += c.length;
  }
  return { starts, stops };
}
