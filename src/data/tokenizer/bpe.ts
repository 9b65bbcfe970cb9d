import { type JsonObject, tokenizerError } from './component.ts';
import { NO_MERGE, PairRanks } from './pair-ranks.ts';

/** Start and stop of each token in its piece, in UTF-16 units: two numbers per token. */
export type TokenOffsets = number[];

/** The model of a tokenizer: maps one piece of normalised, pre-tokenized text to ids. */
export interface TokenModel {
  /** Ids by token. */
  readonly vocab: ReadonlyMap<string, number>;
  /** The token for text outside the vocabulary. */
  readonly unknown: string | undefined;
  /** The ids of `piece`, which is not empty; the offsets of their tokens are appended to `offsets`. */
  tokenize(piece: string, offsets?: TokenOffsets): number[];
}

/** Ids of the tokens `<0x00>` … `<0xFF>` for the UTF-8 bytes of `text`; undefined when the vocabulary lacks one of them. */
export function byteTokenIds(vocab: ReadonlyMap<string, number>, text: string): number[] | undefined {
  const ids: number[] = [];
  for (const byte of Buffer.from(text, 'utf8')) {
    const id = vocab.get(`<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`);
    if (id === undefined) return undefined;
    ids.push(id);
  }
  return ids;
}

/** The id of the unknown token that tokenizer.json names; undefined where it names none. */
export function unknownId(vocab: ReadonlyMap<string, number>, token: unknown, place: string): number | undefined {
  if (token === undefined || token === null) return undefined;
  const id = vocab.get(token as string);
  if (id === undefined) throw tokenizerError(place, `The unk_token ${JSON.stringify(token)} is not in the vocabulary`);
  return id;
}

/** A binary heap that gives the smallest number first. */
class MinHeap {
  readonly #items: number[] = [];

  push(value: number): void {
    const items = this.#items;
    let i = items.length;
    for (; i > 0; ) {
      const parent = (i - 1) >> 1;
      if (items[parent]! <= value) break;
      items[i] = items[parent]!;
      i = parent;
    }
    items[i] = value;
  }

  pop(): number | undefined {
    const items = this.#items;
    const top = items[0];
    const last = items.pop();
    const n = items.length;
    if (n === 0 || last === undefined) return top;
    let i = 0;
    for (let child = 1; child < n; child = 2 * i + 1) {
      if (child + 1 < n && items[child + 1]! < items[child]!) child++;
      if (items[child]! >= last) break;
      items[i] = items[child]!;
      i = child;
    }
    items[i] = last;
    return top;
  }
}

/** SentencePiece's mark of a space. */
const MARK = '▁';
/** How many words have their ids cached, and the longest such word in UTF-16 units. */
const CACHE_WORDS = 2 ** 16;
const CACHE_LENGTH = 64;

/** Pieces of so many symbols are merged without a heap. */
const SHORT = 40;
/** More than the positions in a piece, so that rank · POSITIONS + position is exact for ranks below 2²². */
const POSITIONS = 2 ** 31;

/**
 * Byte-pair encoding: of all adjacent pairs that have a merge, the pair of the lowest rank is merged first, the leftmost of
 * equal ones. Source: `models/bpe/{model,word}.rs` of huggingface/tokenizers; O(n log n) in the length of the piece.
 */
export class Bpe implements TokenModel {
  readonly vocab: ReadonlyMap<string, number>;
  readonly unknown: string | undefined;
  readonly #unknownId: number | undefined;
  readonly #fuseUnknown: boolean;
  readonly #byteFallback: boolean;
  readonly #ignoreMerges: boolean;
  readonly #prefix: string;
  readonly #suffix: string;
  readonly #ranks: PairRanks;
  /** By rank: the id that a merge gives. */
  readonly #mergedIds: number[] = [];
  /** By UTF-16 unit: the id of the token that is this character alone or, in ASCII, its byte; −1 for none; for models whose tokens do not mark the parts of words. */
  readonly #characterIds: Int32Array | undefined;
  /** By UTF-16 unit: whether a merge joins a token that ends with it to one that begins with a mark, or with a line break. */
  readonly #joinsMark = new Uint8Array(65536);
  readonly #joinsLineBreak = new Uint8Array(65536);
  /** By UTF-16 unit: whether a merge joins a token that ends with a line break to one that begins with it. */
  readonly #afterLineBreak = new Uint8Array(65536);
  /** Whether a piece is merged word by word: words are what no merge joins. */
  readonly #hasWords: boolean;
  /** By position in a short piece: the rank of the pair that begins there. */
  readonly #pairs = new Int32Array(SHORT);
  readonly #words = new Map<string, readonly number[]>();

  constructor(model: JsonObject, vocab: ReadonlyMap<string, number>, place: string) {
    this.vocab = vocab;
    this.unknown = (model.unk_token as string | null) ?? undefined;
    this.#unknownId = unknownId(vocab, model.unk_token, place);
    this.#fuseUnknown = model.fuse_unk === true;
    this.#byteFallback = model.byte_fallback === true;
    this.#ignoreMerges = model.ignore_merges === true;
    this.#prefix = (model.continuing_subword_prefix as string | null) ?? '';
    this.#suffix = (model.end_of_word_suffix as string | null) ?? '';
    if (!Array.isArray(model.merges)) throw tokenizerError(place, 'The BPE model has no list of merges');
    this.#ranks = new PairRanks(model.merges.length);
    for (const merge of model.merges as unknown[]) this.#addMerge(merge, place);
    const isPlain = this.#prefix === '' && this.#suffix === '';
    this.#hasWords = vocab.has(MARK) && isPlain;
    if (isPlain) {
      this.#characterIds = new Int32Array(65536).fill(-1);
      if (this.#byteFallback) {
        for (let code = 0; code < 128; code++) {
          this.#characterIds[code] = byteTokenIds(vocab, String.fromCharCode(code))?.[0] ?? -1;
        }
      }
      for (const [token, id] of vocab) if (token.length === 1) this.#characterIds[token.charCodeAt(0)] = id;
    }
  }

  #addMerge(merge: unknown, place: string): void {
    const [left, right, ...rest] = (
      typeof merge === 'string' ? merge.split(' ') : Array.isArray(merge) ? merge : []
    ) as string[];
    if (typeof left !== 'string' || typeof right !== 'string' || rest.length > 0)
      throw tokenizerError(place, `The merge ${JSON.stringify(merge)} is not two tokens`);
    const ids = [left, right, left + right.slice(this.#prefix.length)].map((token) => {
      const id = this.vocab.get(token);
      if (id === undefined)
        throw tokenizerError(
          place,
          `The merge ${JSON.stringify(merge)} contains a token that is not in the vocabulary`,
        );
      return id;
    }) as [number, number, number];
    if (right.startsWith(MARK)) this.#joinsMark[left.charCodeAt(left.length - 1)] = 1;
    if (right.startsWith('\n')) this.#joinsLineBreak[left.charCodeAt(left.length - 1)] = 1;
    if (left.endsWith('\n')) this.#afterLineBreak[right.charCodeAt(0)] = 1;
    this.#ranks.set(ids[0], ids[1], this.#mergedIds.length);
    this.#mergedIds.push(ids[2]);
  }

  tokenize(piece: string, offsets?: TokenOffsets): number[] {
    const pieceId = this.#ignoreMerges ? this.vocab.get(piece) : undefined;
    if (pieceId !== undefined) {
      offsets?.push(0, piece.length);
      return [pieceId];
    }
    return this.#hasWords && piece.includes(MARK, 1)
      ? this.#tokenizeWords(piece, offsets)
      : this.#tokenizeWord(piece, offsets);
  }

  #tokenizeWord(word: string, offsets?: TokenOffsets): number[] {
    const symbolOffsets: TokenOffsets | undefined = offsets && [];
    const ids = this.#plainSymbols(word, symbolOffsets) ?? this.#symbols(word, symbolOffsets);
    if (ids.length === 0 || ids.length > SHORT) return this.#merge(ids, symbolOffsets, offsets);
    this.#mergeShort(ids, symbolOffsets);
    if (symbolOffsets) for (const offset of symbolOffsets) offsets!.push(offset);
    return ids;
  }

  /** The same, for a piece that may be a whole text: no merge reaches from a word into the next one, so words have the same ids anywhere. */
  #tokenizeWords(piece: string, offsets?: TokenOffsets): number[] {
    const ids: number[] = [];
    for (let start = 0; start < piece.length; ) {
      const stop = this.#wordEnd(piece, start);
      const word = piece.slice(start, stop);
      if (offsets) {
        const wordOffsets: TokenOffsets = [];
        for (const id of this.#tokenizeWord(word, wordOffsets)) ids.push(id);
        for (const offset of wordOffsets) offsets.push(start + offset);
      } else for (const id of this.#idsOfWord(word)) ids.push(id);
      start = stop;
    }
    return ids;
  }

  /** Where the word ends that begins at `start`. */
  #wordEnd(piece: string, start: number): number {
    const breaksLines = this.#characterIds![10]! >= 0; // an unknown character may be one with its neighbours
    let before = piece.charCodeAt(start);
    for (let i = start + 1; i < piece.length; i++) {
      const code = piece.charCodeAt(i);
      if (code === 0x2581 && this.#joinsMark[before] === 0) return i;
      if (breaksLines && code === 10 && this.#joinsLineBreak[before] === 0) return i;
      if (breaksLines && before === 10 && this.#afterLineBreak[code] === 0) return i;
      before = code;
    }
    return piece.length;
  }

  #idsOfWord(word: string): readonly number[] {
    const cached = this.#words.get(word);
    if (cached) return cached;
    const ids = this.#tokenizeWord(word);
    if (word.length <= CACHE_LENGTH) {
      if (this.#words.size >= CACHE_WORDS) this.#words.clear();
      this.#words.set(word, ids);
    }
    return ids;
  }

  /** The ids before any merge of a piece that consists of characters with a token; undefined for another piece. */
  #plainSymbols(piece: string, offsets: TokenOffsets | undefined): number[] | undefined {
    const characterIds = this.#characterIds;
    if (!characterIds) return undefined;
    const ids: number[] = [];
    for (let i = 0; i < piece.length; i++) {
      const id = characterIds[piece.charCodeAt(i)]!;
      if (id < 0) return undefined;
      ids.push(id);
    }
    if (offsets) for (let i = 0; i < ids.length; i++) offsets.push(i, i + 1);
    return ids;
  }

  /** The ids before any merge: of each character its token, else its byte tokens, else the unknown token. */
  #symbols(piece: string, offsets: TokenOffsets | undefined): number[] {
    const ids: number[] = [];
    let unknown: [start: number, end: number] | undefined; // unknown characters that have no id yet
    const flush = () => {
      if (!unknown) return;
      ids.push(this.#unknownId!);
      offsets?.push(...unknown);
      unknown = undefined;
    };
    let at = 0;
    for (const c of piece) {
      const end = at + c.length;
      let symbol = at === 0 ? c : this.#prefix + c;
      if (end === piece.length) symbol += this.#suffix;
      const id = this.vocab.get(symbol);
      const bytes = id === undefined && this.#byteFallback ? byteTokenIds(this.vocab, symbol) : undefined;
      if (id !== undefined) {
        flush();
        ids.push(id);
        offsets?.push(at, end);
      } else if (bytes) {
        for (const byte of bytes) {
          ids.push(byte);
          offsets?.push(at, end);
        }
      } else if (this.#unknownId !== undefined) {
        if (unknown && this.#fuseUnknown) unknown[1] = end;
        else {
          flush();
          unknown = [at, end];
        }
      }
      at = end;
    }
    flush();
    return ids;
  }

  /** Merges a few `ids` in place, and with them `offsets`: the pair of the lowest rank is looked for among all. */
  #mergeShort(ids: number[], offsets: TokenOffsets | undefined): void {
    const [ranks, mergedIds, pairs] = [this.#ranks, this.#mergedIds, this.#pairs];
    let count = ids.length - 1;
    for (let i = 0; i < count; i++) pairs[i] = ranks.get(ids[i]!, ids[i + 1]!);
    for (;;) {
      let best = -1;
      let lowest = NO_MERGE;
      for (let i = 0; i < count; i++) {
        if (pairs[i]! < lowest) {
          lowest = pairs[i]!;
          best = i;
        }
      }
      if (best < 0) break;
      ids[best] = mergedIds[lowest]!;
      for (let i = best + 1; i < count; i++) ids[i] = ids[i + 1]!;
      if (offsets) {
        offsets[2 * best + 1] = offsets[2 * best + 3]!;
        offsets.splice(2 * best + 2, 2);
      }
      count--;
      for (let i = best + 1; i < count; i++) pairs[i] = pairs[i + 1]!;
      if (best < count) pairs[best] = ranks.get(ids[best]!, ids[best + 1]!);
      if (best > 0) pairs[best - 1] = ranks.get(ids[best - 1]!, ids[best]!);
    }
    ids.length = count + 1;
  }

  /** Merges `ids` in place and returns what is left; `symbolOffsets` are theirs, `offsets` receives those of the result. */
  #merge(ids: number[], symbolOffsets: TokenOffsets | undefined, offsets: TokenOffsets | undefined): number[] {
    const n = ids.length;
    if (n > 1) {
      const [ranks, mergedIds] = [this.#ranks, this.#mergedIds];
      const next = new Int32Array(n);
      const previous = new Int32Array(n);
      for (let i = 0; i < n; i++) [next[i], previous[i]] = [i + 1, i - 1];
      const heap = new MinHeap();
      const addPair = (left: number, right: number) => {
        const rank = ranks.get(ids[left]!, ids[right]!);
        if (rank !== NO_MERGE) heap.push(rank * POSITIONS + left);
      };
      for (let i = 0; i + 1 < n; i++) addPair(i, i + 1);
      for (let top = heap.pop(); top !== undefined; top = heap.pop()) {
        const rank = Math.floor(top / POSITIONS);
        const left = top - rank * POSITIONS;
        const right = next[left]!;
        if (ids[left] === -1 || right >= n) continue;
        // The pair may have changed since it was added.
        const current = ranks.get(ids[left]!, ids[right]!);
        if (current === NO_MERGE || mergedIds[current] !== mergedIds[rank]) continue;
        ids[left] = mergedIds[rank]!;
        ids[right] = -1;
        if (symbolOffsets) symbolOffsets[2 * left + 1] = symbolOffsets[2 * right + 1]!;
        const after = next[right]!;
        next[left] = after;
        if (after < n) {
          previous[after] = left;
          addPair(left, after);
        }
        if (previous[left]! >= 0) addPair(previous[left]!, left);
      }
    }
    const result: number[] = [];
    for (let i = 0; i < n; i++) {
      if (ids[i] === -1) continue;
      result.push(ids[i]!);
      if (symbolOffsets) offsets!.push(symbolOffsets[2 * i]!, symbolOffsets[2 * i + 1]!);
    }
    return result;
  }
}
