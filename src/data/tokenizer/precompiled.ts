import type { Normalizer } from './component.ts';
import { tokenizerError } from './component.ts';

import { ASCII } from './unicode.ts';

/**
 * SentencePiece's compiled normalisation rules: a double-array trie from UTF-8 sequences to places in a text of results
 * that are closed by NUL. Applied as tokenizers does: to grapheme clusters of less than 6 bytes, else to characters; the
 * shortest matching key decides. Source: huggingface/spm_precompiled `lib.rs`; the trie is darts-clone's.
 * @param charsmap base64: u32 size of the trie, the trie as u32 units, the results
 */
export function precompiled(charsmap: string | null | undefined, place: string): Normalizer | undefined {
  if (!charsmap) return undefined;
  const bytes = Buffer.from(charsmap, 'base64');
  const size = bytes.length >= 4 ? bytes.readUInt32LE(0) : -1;
  if (size < 4 || size % 4 !== 0 || 4 + size > bytes.length)
    throw tokenizerError(place, 'The precompiled_charsmap is cut off or damaged');
  const units = new Uint32Array(bytes.buffer.slice(bytes.byteOffset + 4, bytes.byteOffset + 4 + size));
  const results = bytes.subarray(4 + size);
  const known = new Map<string, string | undefined>();

  const lookUp = (chunk: string): string | undefined => {
    let at = 0;
    let unit = units[0]!;
    at ^= offset(unit);
    for (const byte of Buffer.from(chunk, 'utf8')) {
      if (byte === 0) return undefined;
      at ^= byte;
      unit = units[at] ?? 0;
      if (label(unit) !== byte) return undefined;
      at ^= offset(unit);
      if (hasLeaf(unit)) {
        const start = (units[at] ?? 0) & 0x7fffffff;
        const end = results.indexOf(0, start);
        return results.toString('utf8', start, end < 0 ? results.length : end);
      }
    }
    return undefined;
  };
  const replaced = (chunk: string): string | undefined => {
    if (known.size > 50_000) known.clear();
    if (!known.has(chunk)) known.set(chunk, lookUp(chunk));
    return known.get(chunk);
  };
  const graphemes = new Intl.Segmenter('en', { granularity: 'grapheme' });
  const cluster = (text: string): string => {
    const whole = Buffer.byteLength(text) < 6 ? replaced(text) : undefined;
    if (whole !== undefined) return whole;
    let out = '';
    for (const c of text) out += replaced(c) ?? c;
    return out;
  };
  return (text) => {
    let out = '';
    // In ASCII the only cluster of two characters is CR LF; the segmenter is slow.
    if (ASCII.test(text)) for (const c of text.match(/\r\n|[^]/g) ?? []) out += cluster(c);
    else for (const { segment } of graphemes.segment(text)) out += cluster(segment);
    return out;
  };
}
/** Fields of a unit of the double array. Source: darts-clone `darts.h`. */
const hasLeaf = (unit: number): boolean => ((unit >>> 8) & 1) === 1;
const label = (unit: number): number => unit & 0x800000ff;
const offset = (unit: number): number => (unit >>> 10) << ((unit & 0x200) >>> 6);
