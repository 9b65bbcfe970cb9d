import { type Normalizer, tokenizerError } from './component.ts';
import { ASCII } from './unicode.ts';

/**
 * The normaliser of SentencePiece's compiled rules: a double-array trie from UTF-8 sequences to offsets in a text of
 * replacements, each terminated by NUL. As in tokenizers it is applied to grapheme clusters of less than 6 bytes, else to
 * characters, and the shortest matching key is used. Source: huggingface/spm_precompiled `lib.rs`; the trie is darts-clone's.
 * @param charsmap base64: u32 size of the trie, the trie as u32 units, the replacements
 * @throws GraftError `input` for a charsmap that is truncated or damaged
 */
export function precompiled(charsmap: string | null | undefined, place: string): Normalizer | undefined {
  if (!charsmap) return undefined;
  const bytes = Buffer.from(charsmap, 'base64');
  const size = bytes.length >= 4 ? bytes.readUInt32LE(0) : -1;
  if (size < 4 || size % 4 !== 0 || 4 + size > bytes.length)
    throw tokenizerError(place, 'The precompiled_charsmap is truncated or damaged');
  const units = new Uint32Array(bytes.buffer.slice(bytes.byteOffset + 4, bytes.byteOffset + 4 + size));
  const replacements = bytes.subarray(4 + size);
  const cache = new Map<string, string | undefined>();

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
        const end = replacements.indexOf(0, start);
        return replacements.toString('utf8', start, end < 0 ? replacements.length : end);
      }
    }
    return undefined;
  };
  const replacementOf = (chunk: string): string | undefined => {
    if (cache.size > 50_000) cache.clear();
    if (!cache.has(chunk)) cache.set(chunk, lookUp(chunk));
    return cache.get(chunk);
  };
  const graphemes = new Intl.Segmenter('en', { granularity: 'grapheme' });
  const normalizeCluster = (cluster: string): string => {
    const replacement = Buffer.byteLength(cluster) < 6 ? replacementOf(cluster) : undefined;
    if (replacement !== undefined) return replacement;
    let out = '';
    for (const c of cluster) out += replacementOf(c) ?? c;
    return out;
  };
  return (text) => {
    let out = '';
    // In ASCII text the only cluster of two characters is CR LF, so the slow segmenter is not needed.
    if (ASCII.test(text)) for (const c of text.match(/\r\n|[^]/g) ?? []) out += normalizeCluster(c);
    else for (const { segment } of graphemes.segment(text)) out += normalizeCluster(segment);
    return out;
  };
}

/** Fields of a unit of the double array. Source: darts-clone `darts.h`. */
const hasLeaf = (unit: number): boolean => ((unit >>> 8) & 1) === 1;
const label = (unit: number): number => unit & 0x800000ff;
const offset = (unit: number): number => (unit >>> 10) << ((unit & 0x200) >>> 6);
