import { type Part, tokenizerError } from './component.ts';

/** Start and end of each token in the piece it came from, in UTF-16 units, two numbers a token. */
export type Extents = number[];

/** What turns one piece of normalised, pre-tokenised text into ids. */
export interface Model {
  /** Ids by token. */
  readonly vocab: ReadonlyMap<string, number>;
  readonly unknown: string | undefined;
  /** Ids of `piece`, which is not empty; with `extents`, also where each of them lies. */
  tokenize(piece: string, extents?: Extents): number[];
}

/** Ids of the tokens `<0x00>` … `<0xFF>` for the UTF-8 bytes of `text`, or undefined when the vocabulary lacks one of them. */
export function byteFallback(vocab: ReadonlyMap<string, number>, text: string): number[] | undefined {
  const ids: number[] = [];
  for (const byte of Buffer.from(text, 'utf8')) {
    const id = vocab.get(`<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`);
    if (id === undefined) return undefined;
    ids.push(id);
  }
  return ids;
}

/** The id of `token`, of which tokenizer.json says that it stands for what is unknown. */
export function unknownId(vocab: ReadonlyMap<string, number>, token: unknown, place: string): number | undefined {
  if (token === undefined || token === null) return undefined;
  const id = vocab.get(token as string);
  if (id === undefined) throw tokenizerError(place, `The unk_token ${JSON.stringify(token)} is not in the vocabulary`);
  return id;
}

/** Smallest number first. */
class Heap {
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

/** Positions in one piece; with a rank below 2²² they share an exact number. */
const POSITIONS = 2 ** 31;

/**
 * Byte-pair encoding: of all neighbours that a merge is known for, the earliest merge is made first, the leftmost of
 * equals. Source: `models/bpe/{model,word}.rs` of huggingface/tokenizers; O(n log n) in the length of the piece.
 */
export class Bpe implements Model {
  readonly vocab: ReadonlyMap<string, number>;
  readonly unknown: string | undefined;
  readonly #unknownId: number | undefined;
  readonly #fuse: boolean;
  readonly #bytes: boolean;
  readonly #whole: boolean;
  readonly #prefix: string;
  readonly #suffix: string;
  /** Rank of a merge by left id · span + right id. */
  readonly #ranks = new Map<number, number>();
  readonly #merged: number[] = [];
  readonly #span: number;

  constructor(model: Part, vocab: ReadonlyMap<string, number>, place: string) {
    this.vocab = vocab;
    this.unknown = (model.unk_token as string | null) ?? undefined;
    this.#unknownId = unknownId(vocab, model.unk_token, place);
    this.#fuse = model.fuse_unk === true;
    this.#bytes = model.byte_fallback === true;
    this.#whole = model.ignore_merges === true;
    this.#prefix = (model.continuing_subword_prefix as string | null) ?? '';
    this.#suffix = (model.end_of_word_suffix as string | null) ?? '';
    let largest = 0;
    for (const id of vocab.values()) if (id > largest) largest = id;
    this.#span = largest + 1;
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
        throw tokenizerError(place, `The merge ${JSON.stringify(merge)} names a token that is not in the vocabulary`);
      return id;
    }) as [number, number, number];
    this.#ranks.set(ids[0] * this.#span + ids[1], this.#merged.length);
    this.#merged.push(ids[2]);
  }

  tokenize(piece: string, extents?: Extents): number[] {
    const whole = this.#whole ? this.vocab.get(piece) : undefined;
    if (whole !== undefined) {
      extents?.push(0, piece.length);
      return [whole];
    }
    const where: Extents = [];
    const ids = this.#symbols(piece, where);
    return this.#merge(ids, where, extents);
  }

  /** One id a character (of those that are known), or the byte tokens of a character, or the unknown token. */
  #symbols(piece: string, where: Extents): number[] {
    const ids: number[] = [];
    let waiting: [start: number, end: number] | undefined; // an unknown stretch not yet written
    const flush = () => {
      if (!waiting) return;
      ids.push(this.#unknownId!);
      where.push(...waiting);
      waiting = undefined;
    };
    let at = 0;
    for (const c of piece) {
      const end = at + c.length;
      let symbol = at === 0 ? c : this.#prefix + c;
      if (end === piece.length) symbol += this.#suffix;
      const id = this.vocab.get(symbol);
      const bytes = id === undefined && this.#bytes ? byteFallback(this.vocab, symbol) : undefined;
      if (id !== undefined) {
        flush();
        ids.push(id);
        where.push(at, end);
      } else if (bytes) {
        for (const byte of bytes) {
          ids.push(byte);
          where.push(at, end);
        }
      } else if (this.#unknownId !== undefined) {
        if (waiting && this.#fuse) waiting[1] = end;
        else {
          flush();
          waiting = [at, end];
        }
      }
      at = end;
    }
    flush();
    return ids;
  }

  #merge(ids: number[], where: Extents, extents: Extents | undefined): number[] {
    const n = ids.length;
    if (n > 1) {
      const [ranks, merged, span] = [this.#ranks, this.#merged, this.#span];
      const next = new Int32Array(n);
      const previous = new Int32Array(n);
      for (let i = 0; i < n; i++) [next[i], previous[i]] = [i + 1, i - 1];
      const heap = new Heap();
      const offer = (left: number, right: number) => {
        const rank = ranks.get(ids[left]! * span + ids[right]!);
        if (rank !== undefined) heap.push(rank * POSITIONS + left);
      };
      for (let i = 0; i + 1 < n; i++) offer(i, i + 1);
      for (let top = heap.pop(); top !== undefined; top = heap.pop()) {
        const rank = Math.floor(top / POSITIONS);
        const left = top - rank * POSITIONS;
        const right = next[left]!;
        if (ids[left] === -1 || right >= n) continue;
        const now = ranks.get(ids[left]! * span + ids[right]!);
        if (now === undefined || merged[now] !== merged[rank]) continue;
        ids[left] = merged[rank]!;
        ids[right] = -1;
        where[2 * left + 1] = where[2 * right + 1]!;
        const after = next[right]!;
        next[left] = after;
        if (after < n) {
          previous[after] = left;
          offer(left, after);
        }
        if (previous[left]! >= 0) offer(previous[left]!, left);
      }
    }
    const out: number[] = [];
    for (let i = 0; i < n; i++) {
      if (ids[i] === -1) continue;
      out.push(ids[i]!);
      extents?.push(where[2 * i]!, where[2 * i + 1]!);
    }
    return out;
  }
}
