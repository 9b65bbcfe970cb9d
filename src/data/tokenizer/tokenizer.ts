import { GraftError } from '../../base/index.ts';
import { type AddedToken, AddedTokenFinder, readAddedTokens } from './added.ts';
import { fromByteChars, type JsonObject, tokenizerError } from './component.ts';
import { cleanUp, type Decoder, makeDecoder } from './decoder.ts';
import { Encoder } from './encoder.ts';
import { makeNormalizer } from './normalizer.ts';
import { type PairTemplate, readAffixes, readPairTemplate } from './post-processor.ts';
import { makePreTokenizer } from './pretokenizer.ts';
import type { TokenizerSettings } from './settings.ts';
import { TextStream } from './text-stream.ts';
import { type GgufTokenizer, tokenizerToGguf } from './to-gguf.ts';
import { makeTokenModel } from './token-model.ts';

/**
 * A tokenizer as tokenizer.json describes it, with the ids that the Python package `tokenizers` gives: BPE (byte-level or
 * with byte fallback), Unigram, WordPiece, WordLevel. Truncation and padding settings of the file are ignored.
 */
export class Tokenizer {
  /** Number of ids: one more than the largest. */
  readonly vocabSize: number;
  /** The id of the token that begins a text; undefined where there is none. */
  readonly bosId: number | undefined;
  /** The id of the token that ends a text: the tokenizer's, else the model's; undefined where neither names one. */
  readonly eosId: number | undefined;
  /** The id of the padding token; undefined where there is none. */
  readonly padId: number | undefined;
  /** The id of the token for what is not in the vocabulary; undefined where there is none. */
  readonly unkId: number | undefined;
  /** Every id that ends a generation; `eosId` among them. */
  readonly eosIds: readonly number[];
  /** The end at which a text that is too long loses tokens. */
  readonly truncationSide: 'left' | 'right';
  /** Chat templates by name; `default` is used unless another is named. */
  readonly chatTemplates: Readonly<Record<string, string>>;
  readonly #json: JsonObject;
  readonly #settings: TokenizerSettings;
  readonly #place: string;
  readonly #idByToken: ReadonlyMap<string, number>;
  readonly #tokenById: (string | undefined)[] = [];
  readonly #addedTokens: readonly AddedToken[];
  readonly #specialIds: ReadonlySet<number>;
  readonly #specialTokens: AddedTokenFinder;
  readonly #prefix: readonly number[];
  readonly #suffix: readonly number[];
  readonly #pairTemplate: PairTemplate;
  readonly #encoder: Encoder;
  readonly #decoder: Decoder;
  readonly #cleansUp: boolean;
  #wordTokenizer: Tokenizer | undefined;
  #lowercased: Tokenizer | undefined;

  /**
   * @internal `loadTokenizer` and `tokenizerOf` make these.
   * @param json the parsed tokenizer.json
   * @param place its file, for errors
   * @throws GraftError `input` when the file is damaged or uses a component that Graft does not have
   */
  constructor(json: JsonObject, settings: TokenizerSettings, place: string) {
    this.#json = json;
    this.#settings = settings;
    this.#place = place;
    let unknownToken: string | undefined;
    try {
      if (!json.model) throw tokenizerError(place, 'The file has no model');
      const model = makeTokenModel(json.model as JsonObject, place);
      const normalize = makeNormalizer(json.normalizer as JsonObject | null, place);
      const { run: preTokenize, byteLevel } = makePreTokenizer(json.pre_tokenizer as JsonObject | null, place);
      this.#decoder = makeDecoder(json.decoder as JsonObject | null, place);
      const listed = (json.added_tokens ?? []) as JsonObject[];
      const addedTokens = readAddedTokens(listed, settings.addedTokens ?? [], model.vocab, place);
      this.#encoder = new Encoder({ addedTokens, normalize, preTokenize, byteLevel, model });
      this.#addedTokens = addedTokens;
      const special = addedTokens.filter((token) => token.special);
      this.#specialIds = new Set(special.map(({ id }) => id));
      const exactly = { singleWord: false, lstrip: false, rstrip: false };
      this.#specialTokens = new AddedTokenFinder(special.map((token) => ({ ...token, ...exactly })));
      const idByToken = new Map(model.vocab);
      for (const { content, id } of addedTokens) idByToken.set(content, id);
      this.#idByToken = idByToken;
      for (const [token, id] of idByToken) this.#tokenById[id] = token;
      // Python reports and decodes these in their normalised form.
      for (const { id, content, normalized } of addedTokens)
        if (normalized) this.#tokenById[id] = normalize?.(content) ?? content;
      const postProcessor = (json.post_processor ?? null) as JsonObject | null;
      [this.#prefix, this.#suffix] = readAffixes(postProcessor, idByToken, place);
      this.#pairTemplate = readPairTemplate(postProcessor, idByToken);
      unknownToken = settings.unk ?? model.unknown;
    } catch (error) {
      if (error instanceof GraftError) throw error;
      throw tokenizerError(place, `The file is damaged: ${(error as Error).message}`, error);
    }
    this.vocabSize = this.#tokenById.length;
    const idOf = (token: string | undefined) => (token === undefined ? undefined : this.#idByToken.get(token));
    this.bosId = idOf(settings.bos);
    this.eosId = idOf(settings.eos) ?? settings.endId;
    this.padId = idOf(settings.pad);
    this.unkId = idOf(unknownToken);
    this.eosIds = [...new Set([...(this.eosId === undefined ? [] : [this.eosId]), ...(settings.eosIds ?? [])])];
    this.truncationSide = settings.truncationSide ?? 'right';
    this.chatTemplates = settings.chatTemplates ?? {};
    this.#cleansUp = settings.cleanUp === true && (json.model as JsonObject).type !== 'BPE';
  }

  /** The files that hold this tokenizer in a Hugging Face directory: text by name. */
  files(): Record<string, string> {
    const { bos, eos, pad, unk } = this.#settings;
    const templates = Object.entries(this.chatTemplates).map(([name, template]) => ({ name, template }));
    const config = {
      tokenizer_class: 'PreTrainedTokenizerFast',
      ...(bos && { bos_token: bos }),
      ...(eos && { eos_token: eos }),
      ...(pad && { pad_token: pad }),
      ...(unk && { unk_token: unk }),
      ...(templates.length > 0 && {
        chat_template: templates.length === 1 && this.chatTemplate ? this.chatTemplate : templates,
      }),
    };
    return {
      'tokenizer.json': JSON.stringify(this.#json),
      'tokenizer_config.json': JSON.stringify(config, null, 2),
      'generation_config.json': JSON.stringify({ eos_token_id: this.eosIds }, null, 2),
    };
  }

  /**
   * @internal
   * The tokenizer as metadata of a GGUF file.
   * @param rows of the model's table of embeddings
   * @throws GraftError 'usage' for a tokenizer that llama.cpp has no name for
   */
  gguf(rows: number): GgufTokenizer {
    const { bosId: bos, eosId: eos, padId: pad, unkId: unk, eosIds, chatTemplates } = this;
    const ids = { bos, eos, pad, unk, eosIds, prefix: this.#prefix, suffix: this.#suffix };
    const parts = { json: this.#json, addedTokens: this.#addedTokens, chatTemplates, ...ids };
    return tokenizerToGguf(parts, rows, this.#place);
  }

  /**
   * The tokenizer for text that is already split into words, one word at a time. With GPT-2's byte-level pre-tokenizer, tokens
   * within a sentence include the space before them; each word then gets one, as transformers requires (`add_prefix_space`).
   */
  forWords(): Tokenizer {
    const preTokenizer = this.#json.pre_tokenizer as JsonObject | null;
    const isGpt2 = preTokenizer?.type === 'ByteLevel' && preTokenizer.use_regex !== false;
    if (!isGpt2 || preTokenizer.add_prefix_space !== false) return this;
    const json = { ...this.#json, pre_tokenizer: { ...preTokenizer, add_prefix_space: true } };
    this.#wordTokenizer ??= new Tokenizer(json, this.#settings, this.#place);
    return this.#wordTokenizer;
  }

  /** The tokenizer of text in lower case, special tokens in it excepted; itself where it is one (sentence-transformers' `do_lower_case`). */
  lowercased(): Tokenizer {
    const normalizer = this.#json.normalizer as JsonObject | null | undefined;
    const steps =
      normalizer?.type === 'Sequence' ? (normalizer.normalizers as JsonObject[]) : normalizer ? [normalizer] : [];
    if (steps.some(({ type }) => type === 'Lowercase')) return this;
    const json = { ...this.#json, normalizer: { type: 'Sequence', normalizers: [{ type: 'Lowercase' }, ...steps] } };
    this.#lowercased ??= new Tokenizer(json, this.#settings, this.#place);
    return this.#lowercased;
  }

  /**
   * How the vocabulary spells the bytes of a text: as GPT-2's characters, or as themselves with ▁ for a space and <0x0A> for what
   * has no token; undefined where tokens are pieces of words (WordPiece) or words.
   */
  get byteSpelling(): 'byte_level' | 'byte_fallback' | undefined {
    const decoder = this.#json.decoder as JsonObject | null | undefined;
    const steps = decoder?.type === 'Sequence' ? (decoder.decoders as JsonObject[]) : decoder ? [decoder] : [];
    const has = (...types: readonly string[]) => steps.some(({ type }) => types.includes(type as string));
    return has('ByteLevel') ? 'byte_level' : has('ByteFallback', 'Metaspace') ? 'byte_fallback' : undefined;
  }

  /** The chat template named `default`; undefined when the model has none. */
  get chatTemplate(): string | undefined {
    return this.chatTemplates.default;
  }

  /** The token of `id` as the vocabulary spells it (with byte characters, ▁ and ##). */
  idToToken(id: number): string | undefined {
    return this.#tokenById[id];
  }

  /** Returns the id of a token, spelled as the vocabulary spells it; undefined where there is none. */
  tokenToId(token: string): number | undefined {
    return this.#idByToken.get(token);
  }

  /** The bytes that a token adds to a text, where tokens are bytes of it; those of its spelling else. */
  bytesOf(id: number): Uint8Array {
    const token = this.#tokenById[id] ?? '';
    const spelling = this.#specialIds.has(id) ? undefined : this.byteSpelling;
    if (spelling === 'byte_level') return Uint8Array.from(fromByteChars(token));
    const byte = spelling === 'byte_fallback' ? /^<0x([0-9A-Fa-f]{2})>$/.exec(token) : null;
    if (byte) return Uint8Array.of(Number.parseInt(byte[1]!, 16));
    return new TextEncoder().encode(spelling === 'byte_fallback' ? token.replaceAll('▁', ' ') : token);
  }

  /** Whether `id` is a special token, which `decode` can leave out. */
  isSpecial(id: number): boolean {
    return this.#specialIds.has(id);
  }

  /**
   * The ids of `text`. Special tokens that are written out in it are recognised.
   * @param options.addSpecialTokens whether to put the special tokens of the model (such as BOS) before and after the text;
   *   default true, as in Python. `before`: for a text that goes on. False for text that a chat template rendered.
   */
  encode(
    text: string,
    { addSpecialTokens = true }: { readonly addSpecialTokens?: boolean | 'before' } = {},
  ): Int32Array {
    const ids = this.#encoder.encode(text);
    if (!addSpecialTokens) return new Int32Array(ids);
    return new Int32Array([...this.#prefix, ...ids, ...(addSpecialTokens === true ? this.#suffix : [])]);
  }

  /** The ids of a text that begins with `ids` and ends there: with the special tokens after it, and the end token at last. */
  withEnd(ids: Int32Array): Int32Array {
    const closed = endsWith(ids, this.#suffix) ? [...ids] : [...ids, ...this.#suffix];
    if (this.eosId !== undefined && closed.at(-1) !== this.eosId) closed.push(this.eosId);
    return Int32Array.from(closed);
  }

  /** The parts of a text: ids of the special tokens that are written in it, and what stands between them. */
  splitAtSpecialTokens(text: string): (number | string)[] {
    return this.#specialTokens.split(text).map(({ id, start, stop }) => (id >= 0 ? id : text.slice(start, stop)));
  }

  /**
   * Puts the special tokens of the model around one text, or around and between two.
   * @param texts token ids without special tokens
   * @returns the ids, their token types (0 and 1), and the position at which each text begins
   */
  withSpecialTokens(...texts: [ArrayLike<number>] | [ArrayLike<number>, ArrayLike<number>]): {
    ids: Int32Array;
    types: Int32Array;
    starts: number[];
  } {
    const single: PairTemplate = [...this.#prefix, { text: 0 }, ...this.#suffix].map((item) => ({ item, type: 0 }));
    const [ids, types, starts]: [number[], number[], number[]] = [[], [], []];
    for (const { item, type } of texts.length === 1 ? single : this.#pairTemplate) {
      const itemIds = typeof item === 'number' ? [item] : Array.from(texts[item.text]!);
      if (typeof item !== 'number') starts[item.text] = ids.length;
      for (const id of itemIds) {
        ids.push(id);
        types.push(type);
      }
    }
    return { ids: Int32Array.from(ids), types: Int32Array.from(types), starts };
  }

  /**
   * The ids of `text` without special tokens around it, and for each a 1 where it covers a character of `spans`. A token
   * across an edge of a span has a 1.
   * @param spans [start, stop) in UTF-16 units of `text`, in order
   */
  encodeWithMask(text: string, spans: readonly (readonly [number, number])[]): { ids: Int32Array; mask: Uint8Array } {
    return this.#encoder.encodeWithMask(text, spans);
  }

  /**
   * The ids of `text` without special tokens around it, and the offsets of their tokens.
   * @returns spans: start and stop of each token in UTF-16 units of `text`, two numbers per token; the tokens of one
   *   character all have the span of that character
   */
  encodeWithSpans(text: string): { ids: Int32Array; spans: Int32Array } {
    return this.#encoder.encodeWithSpans(text);
  }

  /** The text of `ids`; an id without a token adds nothing. Bytes that are not valid UTF-8 become U+FFFD. */
  decode(ids: Iterable<number>, { skipSpecialTokens = false }: { skipSpecialTokens?: boolean } = {}): string {
    const tokens: string[] = [];
    for (const id of ids) {
      const token = this.#tokenById[id];
      if (token !== undefined && !(skipSpecialTokens && this.#specialIds.has(id))) tokens.push(token);
    }
    const text = this.#decoder(tokens).join('');
    return this.#cleansUp ? cleanUp(text) : text;
  }

  /** Decodes ids one at a time. */
  stream(options: { skipSpecialTokens?: boolean } = {}): TextStream {
    return new TextStream((ids) => this.decode(ids, options), this.#cleansUp);
  }
}

const endsWith = (ids: Int32Array, end: readonly number[]): boolean =>
  ids.length >= end.length && end.every((id, i) => ids[ids.length - end.length + i] === id);
