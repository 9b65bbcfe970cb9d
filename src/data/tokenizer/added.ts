/** A token that is looked for in the text itself, before the model sees any of it. */
export interface AddedToken {
  readonly id: number;
  readonly content: string;
  readonly singleWord: boolean;
  /** White space before (after) it belongs to it. */
  readonly lstrip: boolean;
  readonly rstrip: boolean;
  /** Looked for in normalised text, not in the text as given. */
  readonly normalized: boolean;
  /** Left out by `decode` with `skipSpecialTokens`. */
  readonly special: boolean;
}

/** A stretch [start, stop) of the text: an added token, or (id −1) text between them. */
export interface Stretch {
  readonly id: number;
  readonly start: number;
  readonly stop: number;
}

interface Node {
  readonly next: Map<number, Node>;
  token?: AddedToken;
}

const WORD_AFTER = /^[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]/u;
const WORD_BEFORE = /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]$/u;
const SPACE = /\p{White_Space}/u;

/**
 * Finds added tokens: leftmost first, the longest of those that begin there. Source: `AddedVocabulary::find_matches` of
 * huggingface/tokenizers `added_vocabulary.rs`.
 */
export class AddedFinder {
  readonly #root: Node = { next: new Map() };
  readonly #first: RegExp | undefined;

  /** @param content what to look for in place of a token's own content (its normalised form) */
  constructor(tokens: Iterable<AddedToken>, content: (token: AddedToken) => string = (t) => t.content) {
    const first = new Set<string>();
    for (const token of tokens) {
      const text = content(token);
      if (text === '') continue;
      first.add(text.charAt(0));
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
    if (first.size > 0) this.#first = new RegExp(`[${[...first].map((c) => RegExp.escape(c)).join('')}]`, 'g');
  }

  /** The whole of `text` as added tokens and what lies between them; none of it is empty. */
  split(text: string): Stretch[] {
    const out: Stretch[] = [];
    let done = 0;
    for (let at = this.#candidate(text, 0); at >= 0; ) {
      let node: Node | undefined = this.#root;
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
        if (done < start) out.push({ id: -1, start: done, stop: start });
        out.push({ id: token.id, start, stop });
        done = stop;
      }
      at = this.#candidate(text, end);
    }
    if (done < text.length) out.push({ id: -1, start: done, stop: text.length });
    return out;
  }

  #candidate(text: string, from: number): number {
    if (!this.#first) return -1;
    this.#first.lastIndex = from;
    return this.#first.exec(text)?.index ?? -1;
  }
}
