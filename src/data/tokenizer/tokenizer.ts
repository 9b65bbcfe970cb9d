import { GraftError } from '../../base/index.ts';
import { AddedFinder, type AddedToken, type Stretch } from './added.ts';
import type { Extents, Model } from './bpe.ts';
import type { Normalizer } from './component.ts';
import { type Part, toByteChars, tokenizerError } from './component.ts';
import { type Decoder, makeDecoder } from './decoder.ts';
import { makeNormalizer } from './normalizer.ts';
import { aligned, placeOf, unitsOfBytes } from './offsets.ts';
import { type Frame, readAffixes, readPairFrame } from './post-processor.ts';
import { makePreTokenizer, type PreTokenizer } from './pretokenizer.ts';
import { TextStream } from './text-stream.ts';
import { makeModel } from './token-model.ts';

/** What stands beside tokenizer.json: which tokens play which part, and the chat templates. */
export interface TokenizerSettings {
  readonly bos?: string | undefined;
  readonly eos?: string | undefined;
  readonly pad?: string | undefined;
  readonly unk?: string | undefined;
  /** Given: `encode` puts BOS before (EOS after) the text or not, whatever tokenizer.json says. */
  readonly addBos?: boolean | undefined;
  readonly addEos?: boolean | undefined;
  /** Every id that ends a generation. */
  readonly eosIds?: readonly number[] | undefined;
  /** Chat templates by name; the usual one is `default`. */
  readonly chatTemplates?: Readonly<Record<string, string>> | undefined;
  /** Tokens that tokenizer.json lacks. */
  readonly addedTokens?: readonly Part[] | undefined;
}

/** Pieces whose ids are remembered, and up to which length in UTF-16 units. */
const CACHE_PIECES = 2 ** 16;
const CACHE_LENGTH = 128;

/**
 * A tokenizer as tokenizer.json describes it, with the ids that the Python package `tokenizers` gives: BPE (byte-level or
 * with byte fallback), Unigram, WordPiece, WordLevel. Truncation and padding that the file asks for are not done.
 */
export class Tokenizer {
  /** Number of ids: one more than the largest. */
  readonly vocabSize: number;
  readonly bosId: number | undefined;
  readonly eosId: number | undefined;
  readonly padId: number | undefined;
  readonly unkId: number | undefined;
  /** Every id that ends a generation; `eosId` among them. */
  readonly eosIds: readonly number[];
  readonly chatTemplates: Readonly<Record<string, string>>;
  readonly #json: Part;
  readonly #settings: TokenizerSettings;
  readonly #place: string;
  #forWords: Tokenizer | undefined;
  readonly #ids: ReadonlyMap<string, number>;
  readonly #tokens: (string | undefined)[] = [];
  readonly #special: ReadonlySet<number>;
  readonly #prefix: readonly number[];
  readonly #suffix: readonly number[];
  readonly #pair: Frame;
  readonly #model: Model;
  readonly #normalize: Normalizer | undefined;
  readonly #cut: PreTokenizer;
  readonly #bytes: boolean;
  readonly #decoder: Decoder;
  readonly #before: AddedFinder;
  readonly #after: AddedFinder;
  readonly #cache = new Map<string, readonly number[]>();

  /**
   * @param json the parsed tokenizer.json
   * @param place its file, for errors
   * @throws GraftError `input` when the file is damaged or uses a part that is not known
   */
  constructor(json: Part, settings: TokenizerSettings, place: string) {
    this.#json = json;
    this.#settings = settings;
    this.#place = place;
    try {
      if (!json.model) throw tokenizerError(place, 'The file has no model');
      this.#model = makeModel(json.model as Part, place);
      this.#normalize = makeNormalizer(json.normalizer as Part | null, place);
      const { run, bytes } = makePreTokenizer(json.pre_tokenizer as Part | null, place);
      [this.#cut, this.#bytes] = [run, bytes];
      this.#decoder = makeDecoder(json.decoder as Part | null, place);
      const added = readAdded(
        [...((json.added_tokens ?? []) as Part[]), ...(settings.addedTokens ?? [])],
        this.#model,
        place,
      );
      this.#before = new AddedFinder(added.filter((t) => !t.normalized));
      this.#after = new AddedFinder(
        added.filter((t) => t.normalized),
        (t) => this.#normalize?.(t.content) ?? t.content,
      );
      this.#special = new Set(added.filter((t) => t.special).map((t) => t.id));
      const ids = new Map(this.#model.vocab);
      for (const token of added) ids.set(token.content, token.id);
      this.#ids = ids;
      for (const [token, id] of ids) this.#tokens[id] = token;
      // Python tells and decodes these in their normalised form.
      for (const t of added) if (t.normalized) this.#tokens[t.id] = this.#normalize?.(t.content) ?? t.content;
      const processor = json.post_processor as Part | null;
      [this.#prefix, this.#suffix] = this.#affixes(processor, settings, place);
      this.#pair = this.#forced(settings)
        ? [0, 1].flatMap((text) => [...this.#prefix, { text }, ...this.#suffix].map((part) => ({ part, type: text })))
        : readPairFrame(processor, this.#ids);
    } catch (error) {
      if (error instanceof GraftError) throw error;
      throw tokenizerError(place, `The file is damaged: ${(error as Error).message}`, error);
    }
    this.vocabSize = this.#tokens.length;
    const idOf = (token: string | undefined) => (token === undefined ? undefined : this.#ids.get(token));
    this.bosId = idOf(settings.bos);
    this.eosId = idOf(settings.eos);
    this.padId = idOf(settings.pad);
    this.unkId = idOf(settings.unk ?? this.#model.unknown);
    this.eosIds = [...new Set([...(this.eosId === undefined ? [] : [this.eosId]), ...(settings.eosIds ?? [])])];
    this.chatTemplates = settings.chatTemplates ?? {};
  }

  /** The files that hold this tokenizer in a Hugging Face directory, by name. */
  files(): Record<string, string> {
    const { bos, eos, pad, unk, addBos, addEos } = this.#settings;
    const config = {
      tokenizer_class: 'PreTrainedTokenizerFast',
      ...(bos && { bos_token: bos }),
      ...(eos && { eos_token: eos }),
      ...(pad && { pad_token: pad }),
      ...(unk && { unk_token: unk }),
      ...(addBos !== undefined && { add_bos_token: addBos }),
      ...(addEos !== undefined && { add_eos_token: addEos }),
      ...(this.chatTemplate !== undefined && { chat_template: this.chatTemplate }),
    };
    return {
      'tokenizer.json': JSON.stringify(this.#json),
      'tokenizer_config.json': JSON.stringify(config, null, 2),
      'generation_config.json': JSON.stringify({ eos_token_id: this.eosIds }, null, 2),
    };
  }

  /**
   * The tokenizer for the words of a row that is cut into words already. Where only GPT-2's byte-level cut is at work, pieces in
   * a sentence carry the space before them: each word then gets one, as transformers asks for (`add_prefix_space`).
   */
  forWords(): Tokenizer {
    const cut = this.#json.pre_tokenizer as Part | null;
    const bare = cut?.type === 'ByteLevel' && cut.use_regex !== false;
    if (!bare || cut.add_prefix_space !== false) return this;
    const spaced = { ...this.#json, pre_tokenizer: { ...cut, add_prefix_space: true } };
    this.#forWords ??= new Tokenizer(spaced, this.#settings, this.#place);
    return this.#forWords;
  }

  /** The usual chat template; undefined when the model has none. */
  get chatTemplate(): string | undefined {
    return this.chatTemplates.default;
  }

  /** The token of `id` as it stands in the vocabulary (byte characters, ▁ and ## as they are). */
  idToToken(id: number): string | undefined {
    return this.#tokens[id];
  }

  tokenToId(token: string): number | undefined {
    return this.#ids.get(token);
  }

  /** Whether `id` is a control token, which `decode` can leave out. */
  isSpecial(id: number): boolean {
    return this.#special.has(id);
  }

  /**
   * The ids of `text`. Special tokens that are written out in it are recognised.
   * @param options.addSpecialTokens put before and after what the model expects there, BOS for one; default true, as
   *   Python has it. False for text that a chat template made.
   */
  encode(text: string, { addSpecialTokens = true }: { addSpecialTokens?: boolean } = {}): Int32Array {
    const ids: number[] = addSpecialTokens ? [...this.#prefix] : [];
    const whole = text.toWellFormed();
    for (const part of this.#before.split(whole)) {
      if (part.id >= 0) ids.push(part.id);
      else
        for (const piece of this.#pieces(whole.slice(part.start, part.stop), part.start === 0)) {
          if (typeof piece !== 'string') ids.push(piece.id);
          else for (const id of this.#idsOf(piece)) ids.push(id);
        }
    }
    if (addSpecialTokens) for (const id of this.#suffix) ids.push(id);
    return Int32Array.from(ids);
  }

  /**
   * One text or two, given as ids without special tokens, with what the model expects before, between and after them.
   * @returns the ids, their token types (0 and 1), and where each text begins
   */
  frame(...texts: [ArrayLike<number>] | [ArrayLike<number>, ArrayLike<number>]): {
    ids: Int32Array;
    types: Int32Array;
    starts: number[];
  } {
    const single: Frame = [...this.#prefix, { text: 0 }, ...this.#suffix].map((part) => ({ part, type: 0 }));
    const [ids, types, starts]: [number[], number[], number[]] = [[], [], []];
    for (const { part, type } of texts.length === 1 ? single : this.#pair) {
      const own = typeof part === 'number' ? [part] : Array.from(texts[part.text]!);
      if (typeof part !== 'number') starts[part.text] = ids.length;
      for (const id of own) {
        ids.push(id);
        types.push(type);
      }
    }
    return { ids: Int32Array.from(ids), types: Int32Array.from(types), starts };
  }

  /**
   * The ids of `text`, without special tokens put before or after, and which of them cover a character of `spans`.
   * A token that lies across an edge of a span is in the mask.
   * @param spans [start, stop) in UTF-16 units of `text`, in order
   */
  encodeWithMask(text: string, spans: readonly (readonly [number, number])[]): { ids: Int32Array; mask: Uint8Array } {
    const ids: number[] = [];
    const mask: number[] = [];
    const whole = text.toWellFormed();
    for (const part of this.#before.split(whole)) {
      const inside = spans.filter(([start, stop]) => start < part.stop && stop > part.start);
      if (part.id >= 0) {
        ids.push(part.id);
        mask.push(inside.length > 0 ? 1 : 0);
        continue;
      }
      // Spans in units of the pieces: what the text before an edge comes to. (A normaliser that joins characters over
      // an edge would shift it by one; composed characters are not cut by templates.)
      const measure = (end: number) => {
        const pieces = this.#pieces(whole.slice(part.start, Math.min(end, part.stop)), part.start === 0);
        return pieces.reduce((sum, piece) => sum + this.#units(piece), 0);
      };
      const marks = inside.map(([start, stop]) => [measure(Math.max(start, part.start)), measure(stop)] as const);
      let at = 0;
      for (const piece of this.#pieces(whole.slice(part.start, part.stop), part.start === 0)) {
        const extents: Extents = [];
        if (typeof piece !== 'string') {
          ids.push(piece.id);
          extents.push(0, this.#units(piece));
        } else {
          const made = marks.length > 0 ? this.#model.tokenize(this.#modelled(piece), extents) : this.#idsOf(piece);
          for (const id of made) ids.push(id);
          if (marks.length === 0) for (const _ of made) mask.push(0);
        }
        for (let i = 0; i < extents.length; i += 2) {
          const [start, stop] = [at + extents[i]!, at + extents[i + 1]!];
          mask.push(marks.some(([from, to]) => start < to && stop > from) ? 1 : 0);
        }
        at += this.#units(piece);
      }
    }
    return { ids: Int32Array.from(ids), mask: Uint8Array.from(mask) };
  }

  /**
   * The ids of `text`, without special tokens put before or after, and where each stands in it.
   * @returns spans: start and end of each token in UTF-16 units of `text`; of a character that is several tokens, each
   *   has the whole
   */
  encodeWithSpans(text: string): { ids: Int32Array; spans: Int32Array } {
    const [ids, spans]: [number[], number[]] = [[], []];
    const whole = text.toWellFormed();
    for (const part of this.#before.split(whole)) {
      if (part.id >= 0) {
        ids.push(part.id);
        spans.push(part.start, part.stop);
        continue;
      }
      const given = whole.slice(part.start, part.stop);
      const { normal, starts, stops } = aligned(given, this.#normalize);
      const add = (id: number, from: number, to: number) => {
        ids.push(id);
        spans.push(part.start + (starts[Math.max(0, from)] ?? given.length), part.start + (stops[to - 1] ?? 0));
      };
      let at = 0;
      for (const piece of this.#pieces(given, part.start === 0)) {
        if (typeof piece !== 'string') {
          add(piece.id, piece.start, piece.stop);
          at = piece.stop;
          continue;
        }
        const place = placeOf(piece, normal, at);
        const extents: Extents = [];
        const made = this.#model.tokenize(this.#modelled(piece), extents);
        const bytes = this.#bytes ? unitsOfBytes(piece) : undefined;
        made.forEach((id, i) => {
          const [from, to] = [extents[2 * i]!, extents[2 * i + 1]!];
          add(id, place + (bytes ? bytes.starts[from]! : from), place + (bytes ? bytes.stops[to - 1]! : to));
        });
        at = Math.max(at, place + piece.length);
      }
    }
    return { ids: Int32Array.from(ids), spans: Int32Array.from(spans) };
  }

  /** The text of `ids`; an id without a token gives nothing. Bytes that are not UTF-8 become U+FFFD. */
  decode(ids: Iterable<number>, { skipSpecialTokens = false }: { skipSpecialTokens?: boolean } = {}): string {
    const tokens: string[] = [];
    for (const id of ids) {
      const token = this.#tokens[id];
      if (token !== undefined && !(skipSpecialTokens && this.#special.has(id))) tokens.push(token);
    }
    return this.#decoder(tokens).join('');
  }

  /** Decodes ids as they come. */
  stream(options: { skipSpecialTokens?: boolean } = {}): TextStream {
    return new TextStream((ids) => this.decode(ids, options));
  }

  #pieces(text: string, atStart: boolean): (string | Stretch)[] {
    const normal = this.#normalize ? this.#normalize(text) : text;
    const parts = this.#after.split(normal);
    if (parts.length === 1 && parts[0]!.id < 0) return this.#cut(normal, atStart);
    return parts.flatMap((part): (string | Stretch)[] =>
      part.id >= 0 ? [part] : this.#cut(normal.slice(part.start, part.stop), atStart && part.start === 0),
    );
  }

  /** Length of a piece in the units of the model's extents. */
  #units(piece: string | Stretch): number {
    if (typeof piece !== 'string') return piece.stop - piece.start;
    return this.#bytes ? Buffer.byteLength(piece) : piece.length;
  }

  #modelled(piece: string): string {
    return this.#bytes ? toByteChars(piece) : piece;
  }

  #idsOf(piece: string): readonly number[] {
    const known = this.#cache.get(piece);
    if (known) return known;
    const ids = this.#model.tokenize(this.#modelled(piece));
    if (piece.length <= CACHE_LENGTH) {
      if (this.#cache.size >= CACHE_PIECES) this.#cache.clear();
      this.#cache.set(piece, ids);
    }
    return ids;
  }

  #forced({ addBos, addEos }: TokenizerSettings): boolean {
    return addBos !== undefined || addEos !== undefined;
  }

  /** The ids before and after a text, from `post_processor` or, where settings speak of them, from these. */
  #affixes(part: Part | null, settings: TokenizerSettings, place: string): [number[], number[]] {
    if (!this.#forced(settings)) return readAffixes(part, this.#ids, place);
    const id = (wanted: boolean | undefined, token: string | undefined) => {
      const found = wanted && token !== undefined ? this.#ids.get(token) : undefined;
      return found === undefined ? [] : [found];
    };
    return [id(settings.addBos, settings.bos), id(settings.addEos, settings.eos)];
  }
}

function readAdded(list: readonly Part[], model: Model, place: string): AddedToken[] {
  const byContent = new Map<string, AddedToken>();
  for (const part of list) {
    const { content, id } = part as { content: string; id: number };
    if (typeof content !== 'string' || !Number.isSafeInteger(id) || id < 0)
      throw tokenizerError(place, `The added token ${JSON.stringify(part)} needs content and id`);
    if (byContent.has(content)) continue;
    const special = part.special === true;
    byContent.set(content, {
      id: model.vocab.get(content) ?? id,
      content,
      singleWord: part.single_word === true,
      lstrip: part.lstrip === true,
      rstrip: part.rstrip === true,
      normalized: (part.normalized as boolean | undefined) ?? !special,
      special,
    });
  }
  return [...byContent.values()];
}
