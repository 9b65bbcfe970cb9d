import { type JsonObject, tokenizerError } from './component.ts';

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
  /** Rank of a merge by left id · idCount + right id. */
  readonly #ranks = new Map<number, number>();
  /** By rank: the id that a merge gives. */
  readonly #mergedIds: number[] = [];
  readonly #idCount: number;

  constructor(model: JsonObject, vocab: ReadonlyMap<string, number>, place: string) {
    this.vocab = vocab;
    this.unknown = (model.unk_token as string | null) ?? undefined;
    this.#unknownId = unknownId(vocab, model.unk_token, place);
    this.#fuseUnknown = model.fuse_unk === true;
    this.#byteFallback = model.byte_fallback === true;
    this.#ignoreMerges = model.ignore_merges === true;
    this.#prefix = (model.continuing_subword_prefix as string | null) ?? '';
    this.#suffix = (model.end_of_word_suffix as string | null) ?? '';
    let largest = 0;
    for (const id of vocab.values()) if (id > largest) largest = id;
    this.#idCount = largest + 1;
    if (!Array.isArray(model.merges)) throw tokenizerError(place, 'The BPE model has no list of merges');
    for (const merge of model.merges as unknown[]) this.#addMerge(merge, place);
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
    this.#ranks.set(ids[0] * this.#idCount + ids[1], this.#mergedIds.length);
    this.#mergedIds.push(ids[2]);
  }

  tokenize(piece: string, offsets?: TokenOffsets): number[] {
    const pieceId = this.#ignoreMerges ? this.vocab.get(piece) : undefined;
    if (pieceId !== undefined) {
      offsets?.push(0, piece.length);
      return [pieceId];
    }
    const symbolOffsets: TokenOffsets = [];
    const ids = this.#symbols(piece, symbolOffsets);
    return this.#merge(ids, symbolOffsets, offsets);
  }

  /** The ids before any merge: of each character its token, else its byte tokens, else the unknown token. */
  #symbols(piece: string, offsets: TokenOffsets): number[] {
    const ids: number[] = [];
    let unknown: [start: number, end: number] | undefined; // unknown characters that have no id yet
    const flush = () => {
      if (!unknown) return;
      ids.push(this.#unknownId!);
      offsets.push(...unknown);
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
        offsets.push(at, end);
      } else if (bytes) {
        for (const byte of bytes) {
          ids.push(byte);
          offsets.push(at, end);
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

  /** Merges `ids` in place and returns what is left; `symbolOffsets` are theirs, `offsets` receives those of the result. */
  #merge(ids: number[], symbolOffsets: TokenOffsets, offsets: TokenOffsets | undefined): number[] {
    const n = ids.length;
    if (n > 1) {
      const [ranks, mergedIds, idCount] = [this.#ranks, this.#mergedIds, this.#idCount];
      const next = new Int32Array(n);
      const previous = new Int32Array(n);
      for (let i = 0; i < n; i++) [next[i], previous[i]] = [i + 1, i - 1];
      const heap = new MinHeap();
      const addPair = (left: number, right: number) => {
        const rank = ranks.get(ids[left]! * idCount + ids[right]!);
        if (rank !== undefined) heap.push(rank * POSITIONS + left);
      };
      for (let i = 0; i + 1 < n; i++) addPair(i, i + 1);
      for (let top = heap.pop(); top !== undefined; top = heap.pop()) {
        const rank = Math.floor(top / POSITIONS);
        const left = top - rank * POSITIONS;
        const right = next[left]!;
        if (ids[left] === -1 || right >= n) continue;
        // The pair may have changed since it was added.
        const current = ranks.get(ids[left]! * idCount + ids[right]!);
        if (current === undefined || mergedIds[current] !== mergedIds[rank]) continue;
        ids[left] = mergedIds[rank]!;
        ids[right] = -1;
        symbolOffsets[2 * left + 1] = symbolOffsets[2 * right + 1]!;
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
      offsets?.push(symbolOffsets[2 * i]!, symbolOffsets[2 * i + 1]!);
    }
    return result;
  }
}
