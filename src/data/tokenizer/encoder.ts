import { type AddedToken, AddedTokenFinder, type TextSegment } from './added.ts';
import type { TokenModel, TokenOffsets } from './bpe.ts';
import { type Normalizer, toByteChars } from './component.ts';
import { alignNormalized, byteOffsets, pieceStart } from './offsets.ts';
import type { PreTokenizer } from './pretokenizer.ts';

/** How many pieces have their ids cached, and the longest such piece in UTF-16 units. */
const CACHE_PIECES = 2 ** 16;
const CACHE_LENGTH = 128;

/** The steps from text to ids. */
export interface EncoderSteps {
  readonly addedTokens: readonly AddedToken[];
  readonly normalize: Normalizer | undefined;
  readonly preTokenize: PreTokenizer;
  /** Whether the model sees each piece as byte characters (byte-level BPE). */
  readonly byteLevel: boolean;
  readonly model: TokenModel;
}

/**
 * Encodes text without putting special tokens around it: added tokens are found, what lies between them is normalised, cut
 * into pieces, and the model gives the ids of each piece.
 */
export class Encoder {
  readonly #normalize: Normalizer | undefined;
  readonly #preTokenize: PreTokenizer;
  readonly #byteLevel: boolean;
  readonly #model: TokenModel;
  readonly #addedInText: AddedTokenFinder;
  readonly #addedInNormalizedText: AddedTokenFinder;
  readonly #cache = new Map<string, readonly number[]>();

  constructor({ addedTokens, normalize, preTokenize, byteLevel, model }: EncoderSteps) {
    this.#normalize = normalize;
    this.#preTokenize = preTokenize;
    this.#byteLevel = byteLevel;
    this.#model = model;
    this.#addedInText = new AddedTokenFinder(addedTokens.filter((token) => !token.normalized));
    this.#addedInNormalizedText = new AddedTokenFinder(
      addedTokens.filter((token) => token.normalized),
      ({ content }) => normalize?.(content) ?? content,
    );
  }

  /** The ids of `text`. */
  encode(text: string): number[] {
    const ids: number[] = [];
    const wellFormed = text.toWellFormed();
    for (const segment of this.#addedInText.split(wellFormed)) {
      if (segment.id >= 0) ids.push(segment.id);
      else
        for (const piece of this.#pieces(wellFormed.slice(segment.start, segment.stop), segment.start === 0)) {
          if (typeof piece !== 'string') ids.push(piece.id);
          else for (const id of this.#idsOf(piece)) ids.push(id);
        }
    }
    return ids;
  }

  /**
   * The ids of `text`, and for each a 1 where it covers a character of `spans`. A token across an edge of a span has a 1.
   * @param spans [start, stop) in UTF-16 units of `text`, in order
   */
  encodeWithMask(text: string, spans: readonly (readonly [number, number])[]): { ids: Int32Array; mask: Uint8Array } {
    const ids: number[] = [];
    const mask: number[] = [];
    const wellFormed = text.toWellFormed();
    for (const segment of this.#addedInText.split(wellFormed)) {
      const spansHere = spans.filter(([start, stop]) => start < segment.stop && stop > segment.start);
      if (segment.id >= 0) {
        ids.push(segment.id);
        mask.push(spansHere.length > 0 ? 1 : 0);
        continue;
      }
      // The edges of the spans in the units of the pieces: the length of the pieces of the text before an edge. (A
      // normaliser that joins characters over an edge would shift it by one; templates do not cut composed characters.)
      const unitsBefore = (edge: number) => {
        const before = wellFormed.slice(segment.start, Math.min(edge, segment.stop));
        return this.#pieces(before, segment.start === 0).reduce((sum, piece) => sum + this.#length(piece), 0);
      };
      const pieceSpans = spansHere.map(
        ([start, stop]) => [unitsBefore(Math.max(start, segment.start)), unitsBefore(stop)] as const,
      );
      let at = 0;
      for (const piece of this.#pieces(wellFormed.slice(segment.start, segment.stop), segment.start === 0)) {
        const offsets: TokenOffsets = [];
        if (typeof piece !== 'string') {
          ids.push(piece.id);
          offsets.push(0, this.#length(piece));
        } else if (pieceSpans.length > 0) {
          for (const id of this.#model.tokenize(this.#modelInput(piece), offsets)) ids.push(id);
        } else {
          for (const id of this.#idsOf(piece)) {
            ids.push(id);
            mask.push(0);
          }
        }
        for (let i = 0; i < offsets.length; i += 2) {
          const [start, stop] = [at + offsets[i]!, at + offsets[i + 1]!];
          mask.push(pieceSpans.some(([from, to]) => start < to && stop > from) ? 1 : 0);
        }
        at += this.#length(piece);
      }
    }
    return { ids: Int32Array.from(ids), mask: Uint8Array.from(mask) };
  }

  /**
   * The ids of `text` and the offsets of their tokens.
   * @returns spans: start and stop of each token in UTF-16 units of `text`, two numbers per token; the tokens of one
   *   character all have the span of that character
   */
  encodeWithSpans(text: string): { ids: Int32Array; spans: Int32Array } {
    const [ids, spans]: [number[], number[]] = [[], []];
    const wellFormed = text.toWellFormed();
    for (const segment of this.#addedInText.split(wellFormed)) {
      if (segment.id >= 0) {
        ids.push(segment.id);
        spans.push(segment.start, segment.stop);
        continue;
      }
      const original = wellFormed.slice(segment.start, segment.stop);
      const { normal, starts, stops } = alignNormalized(original, this.#normalize);
      const add = (id: number, from: number, to: number) => {
        ids.push(id);
        spans.push(
          segment.start + (starts[Math.max(0, from)] ?? original.length),
          segment.start + (stops[to - 1] ?? 0),
        );
      };
      let at = 0;
      for (const piece of this.#pieces(original, segment.start === 0)) {
        if (typeof piece !== 'string') {
          add(piece.id, piece.start, piece.stop);
          at = piece.stop;
          continue;
        }
        const start = pieceStart(piece, normal, at);
        const offsets: TokenOffsets = [];
        const pieceIds = this.#model.tokenize(this.#modelInput(piece), offsets);
        const bytes = this.#byteLevel ? byteOffsets(piece) : undefined;
        pieceIds.forEach((id, i) => {
          const [from, to] = [offsets[2 * i]!, offsets[2 * i + 1]!];
          add(id, start + (bytes ? bytes.starts[from]! : from), start + (bytes ? bytes.stops[to - 1]! : to));
        });
        at = Math.max(at, start + piece.length);
      }
    }
    return { ids: Int32Array.from(ids), spans: Int32Array.from(spans) };
  }

  /** The normalised text as pieces for the model and the added tokens between them. */
  #pieces(text: string, atStart: boolean): (string | TextSegment)[] {
    const normal = this.#normalize ? this.#normalize(text) : text;
    const segments = this.#addedInNormalizedText.split(normal);
    if (segments.length === 1 && segments[0]!.id < 0) return this.#preTokenize(normal, atStart);
    return segments.flatMap((segment): (string | TextSegment)[] =>
      segment.id >= 0
        ? [segment]
        : this.#preTokenize(normal.slice(segment.start, segment.stop), atStart && segment.start === 0),
    );
  }

  /** Length of a piece in the units of the model's offsets: bytes with byte-level BPE, else UTF-16 units. */
  #length(piece: string | TextSegment): number {
    if (typeof piece !== 'string') return piece.stop - piece.start;
    return this.#byteLevel ? Buffer.byteLength(piece) : piece.length;
  }

  #modelInput(piece: string): string {
    return this.#byteLevel ? toByteChars(piece) : piece;
  }

  #idsOf(piece: string): readonly number[] {
    const cached = this.#cache.get(piece);
    if (cached) return cached;
    const ids = this.#model.tokenize(this.#modelInput(piece));
    if (piece.length <= CACHE_LENGTH) {
      if (this.#cache.size >= CACHE_PIECES) this.#cache.clear();
      this.#cache.set(piece, ids);
    }
    return ids;
  }
}
