import { type JsonObject, tokenizerError } from './component.ts';
import type { TokenSetting } from './settings.ts';

/** A token that is found in the text itself, before normaliser, pre-tokenizer and model see the text. */
export interface AddedToken {
  readonly id: number;
  readonly content: string;
  readonly singleWord: boolean;
  /** The token includes the white space before (after) it. */
  readonly lstrip: boolean;
  readonly rstrip: boolean;
  /** Searched for in the normalised text instead of the original text. */
  readonly normalized: boolean;
  /** Left out by `decode` with `skipSpecialTokens`. */
  readonly special: boolean;
}

/** The part [start, stop) of a text that is an added token, or (id −1) the text between two of them. */
export interface TextSegment {
  readonly id: number;
  readonly start: number;
  readonly stop: number;
}

interface TrieNode {
  readonly next: Map<number, TrieNode>;
  token?: AddedToken;
}

const WORD_AFTER = /^[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]/u;
const WORD_BEFORE = /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]$/u;
const SPACE = /\p{White_Space}/u;

/**
 * Finds added tokens: the leftmost first, and the longest of those that begin at one position. Source:
 * `AddedVocabulary::find_matches` of huggingface/tokenizers `added_vocabulary.rs`.
 */
export class AddedTokenFinder {
  readonly #root: TrieNode = { next: new Map() };
  readonly #firstCharacter: RegExp | undefined;

  /** @param contentOf the text to search for instead of a token's own content (its normalised form) */
  constructor(tokens: Iterable<AddedToken>, contentOf: (token: AddedToken) => string = (token) => token.content) {
    const firstCharacters = new Set<string>();
    for (const token of tokens) {
      const text = contentOf(token);
      if (text === '') continue;
      firstCharacters.add(text.charAt(0));
      let node = this.#root;
      for (let i = 0; i < text.length; i++) {
        const code = text.charCodeAt(i);
        let child = node.next.get(code);
        if (!child) {
          child = { next: new Map() };
          node.next.set(code, child);
        }
        node = child;
      }
      node.token = token;
    }
    if (firstCharacters.size > 0)
      this.#firstCharacter = new RegExp(`[${[...firstCharacters].map((c) => RegExp.escape(c)).join('')}]`, 'g');
  }

  /** All of `text` as added tokens and the text between them; no segment is empty. */
  split(text: string): TextSegment[] {
    const segments: TextSegment[] = [];
    let done = 0;
    for (let at = this.#candidate(text, 0); at >= 0; ) {
      let node: TrieNode | undefined = this.#root;
      let token: AddedToken | undefined;
      let end = at;
      for (let i = at; i < text.length; i++) {
        node = node.next.get(text.charCodeAt(i));
        if (!node) break;
        if (node.token) [token, end] = [node.token, i + 1];
      }
      if (!token) {
        at = this.#candidate(text, at + 1);
        continue;
      }
      const inWord = WORD_BEFORE.test(text.slice(Math.max(0, at - 2), at)) || WORD_AFTER.test(text.slice(end, end + 2));
      if (!token.singleWord || !inWord) {
        let [start, stop] = [at, end];
        if (token.lstrip) while (start > done && SPACE.test(text.charAt(start - 1))) start--;
        if (token.rstrip) while (stop < text.length && SPACE.test(text.charAt(stop))) stop++;
        if (done < start) segments.push({ id: -1, start: done, stop: start });
        segments.push({ id: token.id, start, stop });
        done = stop;
      }
      at = this.#candidate(text, end);
    }
    if (done < text.length) segments.push({ id: -1, start: done, stop: text.length });
    return segments;
  }

  /** The next position from `from` on at which an added token may begin; −1 when there is none. */
  #candidate(text: string, from: number): number {
    if (!this.#firstCharacter) return -1;
    this.#firstCharacter.lastIndex = from;
    return this.#firstCharacter.exec(text)?.index ?? -1;
  }
}

const flagsOf = (entry: JsonObject, special: boolean) => ({
  singleWord: entry.single_word === true,
  lstrip: entry.lstrip === true,
  rstrip: entry.rstrip === true,
  normalized: (entry.normalized as boolean | undefined) ?? !special,
  special,
});

/**
 * The added tokens of tokenizer.json, of which two with the same content are one, and those that the files beside it name.
 * @param entries `added_tokens` of tokenizer.json
 * @param settings further tokens, or other flags of the same; a new one has the vocabulary's id, else the next free one
 * @param vocab of the token model, whose id for a token takes precedence
 * @throws GraftError `input` for an entry without content or id
 */
export function readAddedTokens(
  entries: readonly JsonObject[],
  settings: readonly TokenSetting[],
  vocab: ReadonlyMap<string, number>,
  place: string,
): AddedToken[] {
  const byContent = new Map<string, AddedToken>();
  let nextId = vocab.size;
  const add = (token: AddedToken) => {
    nextId = Math.max(nextId, token.id + 1);
    byContent.set(token.content, token);
  };
  for (const entry of entries) {
    const { content, id } = entry as { content: string; id: number };
    if (typeof content !== 'string' || !Number.isSafeInteger(id) || id < 0)
      throw tokenizerError(place, `The added token ${JSON.stringify(entry)} needs content and id`);
    if (byContent.has(content)) continue;
    add({ id: vocab.get(content) ?? id, content, ...flagsOf(entry, entry.special === true) });
  }
  for (const { content, flags, known, keepFlags } of settings) {
    if (typeof content !== 'string')
      throw tokenizerError(place, `An added token beside it has the content ${JSON.stringify(content)}`);
    const existing = byContent.get(content);
    const special = existing?.special === true || (flags ? flags.special === true : true);
    if (existing) add({ ...existing, ...(flags && !keepFlags && flagsOf(flags, special)), special });
    else if (!known || vocab.has(content))
      add({ id: vocab.get(content) ?? nextId, content, ...flagsOf(flags ?? {}, special) });
  }
  return [...byContent.values()];
}
