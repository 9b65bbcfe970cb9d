/** Where the pieces of a tokenised text stand in the text as it was given. */
import type { Normalizer } from './component.ts';

/** A normalised text, and for each UTF-16 unit of it where the original that it came from begins and ends. */
export interface Aligned {
  readonly normal: string;
  readonly starts: readonly number[];
  readonly stops: readonly number[];
}

/** A character with its marks; failing that, words: parts that are normalised alike alone and in their text. */
const cuts = [/\P{M}\p{M}*|\p{M}+/gsu, /\s+|\S+/g] as const;

/** Aligns by the smallest parts whose normal forms join to that of the whole; the whole is one part in the worst case. */
export function aligned(text: string, normalize: Normalizer | undefined): Aligned {
  const units = Array.from({ length: text.length }, (_, i) => i);
  if (!normalize) return { normal: text, starts: units, stops: units.map((i) => i + 1) };
  const normal = normalize(text);
  // Behind a letter, so that what a normaliser puts before a whole text is not counted with every part.
  const anchor = normalize('a');
  for (const cut of cuts) {
    const parts = text.match(cut) ?? [];
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

const spaced = (text: string) => text.replaceAll('▁', ' ');

/**
 * Where a piece of a normalised text begins in it, at `from` or behind what a pre-tokeniser removed; one less where it begins with
 * a space that was put before.
 */
export function placeOf(piece: string, normal: string, from: number): number {
  const [text, wanted] = [spaced(normal), spaced(piece)];
  if (text.startsWith(wanted, from)) return from;
  if (wanted.startsWith(' ') && text.startsWith(wanted.slice(1), from)) return from - 1;
  const found = text.indexOf(wanted, from);
  return found < 0 ? from : found;
}

/** For each byte of a text, the UTF-16 unit at which its character begins and ends; one more entry for the end. */
export function unitsOfBytes(text: string): { starts: number[]; stops: number[] } {
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
