import { Bpe, byteFallback, type Extents, type Model, unknownId } from './bpe.ts';
import { type Part, tokenizerError } from './component.ts';

/** The `model` of tokenizer.json. */
export function makeModel(model: Part, place: string): Model {
  // Files older than tokenizers 0.10 leave the type out; only BPE has merges, only Unigram a list as vocabulary.
  const type = model.type ?? (model.merges ? 'BPE' : Array.isArray(model.vocab) ? 'Unigram' : 'WordPiece');
  if (type === 'Unigram') return new Unigram(model, place);
  const vocab = new Map<string, number>();
  for (const [token, id] of Object.entries((model.vocab ?? {}) as Record<string, unknown>)) {
    if (!Number.isSafeInteger(id) || (id as number) < 0)
      throw tokenizerError(place, `The id of ${JSON.stringify(token)} is ${JSON.stringify(id)}`);
    vocab.set(token, id as number);
  }
  if (type === 'BPE') return new Bpe(model, vocab, place);
  if (type === 'WordPiece') return new WordPiece(model, vocab, place);
  if (type === 'WordLevel') return new WordLevel(model, vocab, place);
  throw tokenizerError(place, `Models of type ${JSON.stringify(type)} are not known`);
}

/** The longest known beginning, again and again. Source: `models/wordpiece/mod.rs` of huggingface/tokenizers. */
class WordPiece implements Model {
  readonly vocab: ReadonlyMap<string, number>;
  readonly unknown: string;
  readonly #unknownId: number;
  readonly #prefix: string;
  readonly #longest: number;

  constructor(model: Part, vocab: ReadonlyMap<string, number>, place: string) {
    this.vocab = vocab;
    this.unknown = (model.unk_token as string) ?? '[UNK]';
    this.#unknownId = unknownId(vocab, this.unknown, place)!;
    this.#prefix = (model.continuing_subword_prefix as string) ?? '##';
    this.#longest = (model.max_input_chars_per_word as number) ?? 100;
  }

  tokenize(piece: string, extents?: Extents): number[] {
    const ids: number[] = [];
    const where: Extents = [];
    let length = 0;
    for (const _ of piece) length++;
    for (let start = 0; length <= this.#longest && start < piece.length; ) {
      let end = piece.length;
      let id: number | undefined;
      for (; end > start; end -= piece.codePointAt(end - 2)! > 0xffff ? 2 : 1) {
        id = this.vocab.get((start > 0 ? this.#prefix : '') + piece.slice(start, end));
        if (id !== undefined) break;
      }
      if (id === undefined) break;
      ids.push(id);
      where.push(start, end);
      start = end;
    }
    if ((where.at(-1) ?? 0) === piece.length) {
      extents?.push(...where);
      return ids;
    }
    extents?.push(0, piece.length);
    return [this.#unknownId];
  }
}

/** A piece is a token or unknown. */
class WordLevel implements Model {
  readonly vocab: ReadonlyMap<string, number>;
  readonly unknown: string;
  readonly #unknownId: number | undefined;

  constructor(model: Part, vocab: ReadonlyMap<string, number>, _place: string) {
    this.vocab = vocab;
    this.unknown = (model.unk_token as string) ?? '<unk>';
    this.#unknownId = vocab.get(this.unknown);
  }

  tokenize(piece: string, extents?: Extents): number[] {
    const id = this.vocab.get(piece) ?? this.#unknownId;
    if (id === undefined)
      throw tokenizerError(JSON.stringify(piece), `It is not in the vocabulary, nor is ${this.unknown}`);
    extents?.push(0, piece.length);
    return [id];
  }
}

/** Below the worst known score, what an unknown character costs. */
const UNKNOWN_PENALTY = 10;

/**
 * The segmentation with the highest sum of scores (Viterbi); of equals, the one found first. Source: `encode_optimized`
 * of `models/unigram/model.rs` of huggingface/tokenizers, whose order of additions in double precision is kept.
 */
class Unigram implements Model {
  readonly vocab: ReadonlyMap<string, number>;
  readonly unknown: string | undefined;
  readonly #unknownId: number | undefined;
  readonly #scores: Float64Array;
  readonly #lowest: number;
  readonly #bytes: boolean;
  /** A trie of the tokens: child by node · 2¹⁶ + UTF-16 unit; the id that ends at a node, or −1. */
  readonly #children = new Map<number, number>();
  readonly #ids: number[] = [-1];

  constructor(model: Part, place: string) {
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
      this.#scores[id] = score;
      lowest = Math.min(lowest, score);
      this.#insert(token, id);
    }
    this.vocab = vocab;
    this.#lowest = lowest;
    this.#bytes = model.byte_fallback === true;
    this.#unknownId = (model.unk_id as number | null) ?? undefined;
    this.unknown = this.#unknownId === undefined ? undefined : (list[this.#unknownId] as [string])?.[0];
  }

  #insert(token: string, id: number): void {
    let node = 0;
    for (let i = 0; i < token.length; i++) {
      const key = node * 65536 + token.charCodeAt(i);
      let child = this.#children.get(key);
      if (child === undefined) {
        child = this.#ids.length;
        this.#ids.push(-1);
        this.#children.set(key, child);
      }
      node = child;
    }
    if (node > 0) this.#ids[node] = id;
  }

  tokenize(piece: string, extents?: Extents): number[] {
    const n = piece.length;
    const best = new Float64Array(n + 1);
    const from = new Int32Array(n + 1).fill(-1);
    const chosen = new Int32Array(n + 1);
    const offer = (start: number, end: number, id: number, score: number) => {
      if (from[end] !== -1 && score <= best[end]!) return;
      [best[end], from[end], chosen[end]] = [score, start, id];
    };
    for (let start = 0; start < n; ) {
      const width = piece.codePointAt(start)! > 0xffff ? 2 : 1;
      let single = false;
      let node: number | undefined = 0;
      for (let i = start; i < n; i++) {
        node = this.#children.get(node * 65536 + piece.charCodeAt(i));
        if (node === undefined) break;
        const id = this.#ids[node]!;
        if (id < 0) continue;
        offer(start, i + 1, id, this.#scores[id]! + best[start]!);
        if (i + 1 - start === width) single = true;
      }
      if (!single) {
        if (this.#unknownId === undefined)
          throw tokenizerError(
            JSON.stringify(piece.slice(start, start + width)),
            'It is not in the vocabulary, which has no unk_id',
          );
        offer(start, start + width, this.#unknownId, this.#lowest - UNKNOWN_PENALTY + best[start]!);
      }
      start += width;
    }
    const path: [start: number, end: number][] = [];
    for (let end = n; end > 0; end = from[end]!) {
      const last = path.at(-1);
      const unknown = chosen[end] === this.#unknownId;
      // Unknown neighbours become one token.
      if (unknown && last && chosen[last[1]] === this.#unknownId) last[0] = from[end]!;
      else path.push([from[end]!, end]);
    }
    const ids: number[] = [];
    for (const [start, end] of path.reverse()) {
      const token = piece.slice(start, end);
      const known = this.vocab.get(token);
      const made =
        known !== undefined ? [known] : (this.#bytes && byteFallback(this.vocab, token)) || [this.#unknownId!];
      ids.push(...made);
      if (extents) for (const _ of made) extents.push(start, end);
    }
    return ids;
  }
}
