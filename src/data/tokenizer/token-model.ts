import { Bpe, byteTokenIds, type TokenModel, type TokenOffsets, unknownId } from './bpe.ts';
import { type JsonObject, tokenizerError } from './component.ts';

/** The `model` of tokenizer.json. @throws GraftError `input` for one that is damaged or of an unsupported type */
export function makeTokenModel(model: JsonObject, place: string): TokenModel {
  // Files older than tokenizers 0.10 leave the type out; only BPE has merges, only Unigram a list as vocabulary.
  const type = model.type ?? (model.merges ? 'BPE' : Array.isArray(model.vocab) ? 'Unigram' : 'WordPiece');
  if (type === 'Unigram') return new Unigram(model, place);
  const vocab = new Map<string, number>();
  for (const [token, id] of Object.entries((model.vocab ?? {}) as Record<string, unknown>)) {
    if (!Number.isSafeInteger(id) || (id as number) < 0)
      throw tokenizerError(
        place,
        `The id of ${JSON.stringify(token)} must be a whole number from 0, and is ${JSON.stringify(id)}`,
      );
    vocab.set(token, id as number);
  }
  if (type === 'BPE') return new Bpe(model, vocab, place);
  if (type === 'WordPiece') return new WordPiece(model, vocab, place);
  if (type === 'WordLevel') return new WordLevel(model, vocab, place);
  throw tokenizerError(place, `Models of type ${JSON.stringify(type)} are not supported`);
}

/**
 * Takes the longest token that the rest of a piece begins with, until the piece is used up. Source: `models/wordpiece/mod.rs` of
 * huggingface/tokenizers.
 */
class WordPiece implements TokenModel {
  readonly vocab: ReadonlyMap<string, number>;
  readonly unknown: string;
  readonly #unknownId: number;
  readonly #prefix: string;
  readonly #maxCharacters: number;

  constructor(model: JsonObject, vocab: ReadonlyMap<string, number>, place: string) {
    this.vocab = vocab;
    this.unknown = (model.unk_token as string) ?? '[UNK]';
    this.#unknownId = unknownId(vocab, this.unknown, place)!;
    this.#prefix = (model.continuing_subword_prefix as string) ?? '##';
    this.#maxCharacters = (model.max_input_chars_per_word as number) ?? 100;
  }

  tokenize(piece: string, offsets?: TokenOffsets): number[] {
    const ids: number[] = [];
    const pieceOffsets: TokenOffsets = [];
    let length = 0;
    for (const _ of piece) length++;
    for (let start = 0; length <= this.#maxCharacters && start < piece.length; ) {
      let end = piece.length;
      let id: number | undefined;
      for (; end > start; end -= piece.codePointAt(end - 2)! > 0xffff ? 2 : 1) {
        id = this.vocab.get((start > 0 ? this.#prefix : '') + piece.slice(start, end));
        if (id !== undefined) break;
      }
      if (id === undefined) break;
      ids.push(id);
      pieceOffsets.push(start, end);
      start = end;
    }
    if ((pieceOffsets.at(-1) ?? 0) === piece.length) {
      offsets?.push(...pieceOffsets);
      return ids;
    }
    offsets?.push(0, piece.length);
    return [this.#unknownId];
  }
}

/** Each piece is one token, or the unknown token. */
class WordLevel implements TokenModel {
  readonly vocab: ReadonlyMap<string, number>;
  readonly unknown: string;
  readonly #unknownId: number | undefined;

  constructor(model: JsonObject, vocab: ReadonlyMap<string, number>, _place: string) {
    this.vocab = vocab;
    this.unknown = (model.unk_token as string) ?? '<unk>';
    this.#unknownId = vocab.get(this.unknown);
  }

  tokenize(piece: string, offsets?: TokenOffsets): number[] {
    const id = this.vocab.get(piece) ?? this.#unknownId;
    if (id === undefined)
      throw tokenizerError(
        JSON.stringify(piece),
        `The piece is not in the vocabulary, and neither is the unknown token ${this.unknown}`,
      );
    offsets?.push(0, piece.length);
    return [id];
  }
}

/**
 * A score as Python's tokenizers reads it from its text: the digits as an integer, multiplied or divided by a power of ten. In one
 * of four that is the neighbour of the number in the file, which decides between segmentations of equal scores. Source:
 * `f64_from_parts` of serde_json.
 */
function readAsRust(score: number): number {
  const [mantissa, exponent] = Math.abs(score).toExponential().split('e') as [string, string];
  const [whole, fraction = ''] = mantissa.split('.') as [string, string?];
  const power = Number(exponent) - fraction.length;
  const scale = Number(`1e${Math.abs(power)}`);
  const digits = Number(whole + fraction);
  return Math.sign(score) * (power < 0 ? digits / scale : digits * scale);
}

/** An unknown character scores this much less than the lowest score of the vocabulary. */
const UNKNOWN_PENALTY = 10;

/**
 * Finds the segmentation with the highest sum of scores (Viterbi); of equal ones, the first. Source: `encode_optimized`
 * of `models/unigram/model.rs` of huggingface/tokenizers, with the same order of additions in double precision.
 */
class Unigram implements TokenModel {
  readonly vocab: ReadonlyMap<string, number>;
  readonly unknown: string | undefined;
  readonly #unknownId: number | undefined;
  readonly #scores: Float64Array;
  readonly #lowestScore: number;
  readonly #byteFallback: boolean;
  /** A trie of the tokens: child by node · 2¹⁶ + UTF-16 unit. */
  readonly #children = new Map<number, number>();
  /** By node of the trie: the id of the token that ends there, or −1. */
  readonly #idAtNode: number[] = [-1];

  constructor(model: JsonObject, place: string) {
    const list = model.vocab;
    if (!Array.isArray(list) || list.length === 0) throw tokenizerError(place, 'The Unigram model has no vocabulary');
    const vocab = new Map<string, number>();
    this.#scores = new Float64Array(list.length);
    let lowest = Number.POSITIVE_INFINITY;
    for (const [id, entry] of (list as unknown[]).entries()) {
      const [token, score] = Array.isArray(entry) ? (entry as unknown[]) : [];
      if (typeof token !== 'string' || typeof score !== 'number')
        throw tokenizerError(
          place,
          `Entry ${id} of the vocabulary is not a token with a score: ${JSON.stringify(entry)}`,
        );
      vocab.set(token, id);
      const read = readAsRust(score);
      this.#scores[id] = read;
      lowest = Math.min(lowest, read);
      this.#insert(token, id);
    }
    this.vocab = vocab;
    this.#lowestScore = lowest;
    this.#byteFallback = model.byte_fallback === true;
    this.#unknownId = (model.unk_id as number | null) ?? undefined;
    this.unknown = this.#unknownId === undefined ? undefined : (list[this.#unknownId] as [string])?.[0];
  }

  #insert(token: string, id: number): void {
    let node = 0;
    for (let i = 0; i < token.length; i++) {
      const key = node * 65536 + token.charCodeAt(i);
      let child = this.#children.get(key);
      if (child === undefined) {
        child = this.#idAtNode.length;
        this.#idAtNode.push(-1);
        this.#children.set(key, child);
      }
      node = child;
    }
    if (node > 0) this.#idAtNode[node] = id;
  }

  tokenize(piece: string, offsets?: TokenOffsets): number[] {
    const n = piece.length;
    // By position: the best score of the piece up to there, and the start and the id of the last token.
    const bestScore = new Float64Array(n + 1);
    const tokenStart = new Int32Array(n + 1).fill(-1);
    const tokenId = new Int32Array(n + 1);
    const consider = (start: number, end: number, id: number, score: number) => {
      if (tokenStart[end] !== -1 && score <= bestScore[end]!) return;
      [bestScore[end], tokenStart[end], tokenId[end]] = [score, start, id];
    };
    for (let start = 0; start < n; ) {
      const width = piece.codePointAt(start)! > 0xffff ? 2 : 1;
      let hasCharacterToken = false;
      let node: number | undefined = 0;
      for (let i = start; i < n; i++) {
        node = this.#children.get(node * 65536 + piece.charCodeAt(i));
        if (node === undefined) break;
        const id = this.#idAtNode[node]!;
        if (id < 0) continue;
        consider(start, i + 1, id, this.#scores[id]! + bestScore[start]!);
        if (i + 1 - start === width) hasCharacterToken = true;
      }
      if (!hasCharacterToken) {
        if (this.#unknownId === undefined)
          throw tokenizerError(
            JSON.stringify(piece.slice(start, start + width)),
            'The character is not in the vocabulary, which has no unk_id',
          );
        consider(start, start + width, this.#unknownId, this.#lowestScore - UNKNOWN_PENALTY + bestScore[start]!);
      }
      start += width;
    }
    const path: [start: number, end: number][] = [];
    for (let end = n; end > 0; end = tokenStart[end]!) {
      const last = path.at(-1);
      const unknown = tokenId[end] === this.#unknownId;
      // Adjacent unknown characters become one token.
      if (unknown && last && tokenId[last[1]] === this.#unknownId) last[0] = tokenStart[end]!;
      else path.push([tokenStart[end]!, end]);
    }
    const ids: number[] = [];
    for (const [start, end] of path.reverse()) {
      const token = piece.slice(start, end);
      const id = this.vocab.get(token);
      const tokenIds =
        id !== undefined ? [id] : (this.#byteFallback && byteTokenIds(this.vocab, token)) || [this.#unknownId!];
      ids.push(...tokenIds);
      if (offsets) for (const _ of tokenIds) offsets.push(start, end);
    }
    return ids;
  }
}
