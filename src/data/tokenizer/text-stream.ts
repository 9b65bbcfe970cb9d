/** Bytes of a character in UTF-8 at most, and so the tokens that it may need. */
const maxBytes = 4;

/** Decodes ids one at a time and gives text once later ids cannot change it: complete characters, with the spaces of `decode`. */
export class TextStream {
  readonly #decode: (ids: number[]) => string;
  readonly #whole: boolean;
  #ids: number[] = [];
  /** How many ids at the start of `#ids` have been given as text; they are kept because they affect the text of the next ones. */
  #emitted = 0;

  /**
   * @internal `Tokenizer.stream` makes these.
   * @param whole whether any later id can change the text, so that it is all given at the end
   */
  constructor(decode: (ids: number[]) => string, whole = false) {
    this.#decode = decode;
    this.#whole = whole;
  }

  /** Adds an id and returns the text that it completes, which may be empty. */
  push(id: number): string {
    this.#ids.push(id);
    return this.#take(false);
  }

  /** Returns the text held back, with U+FFFD for incomplete characters, and resets the stream. */
  end(): string {
    const rest = this.#take(true);
    this.#ids = [];
    this.#emitted = 0;
    return rest;
  }

  /** @param final whether to return an incomplete character too */
  #take(final: boolean): string {
    if (this.#whole && !final) return '';
    const before = this.#decode(this.#ids.slice(0, this.#emitted));
    const text = this.#decode(this.#ids);
    if (!final && (text.endsWith('\ufffd') || text.length <= before.length)) return this.#takeBroken(before, text);
    return this.#give(before, text, this.#ids.length);
  }

  /** Of many ids that end in no complete character, the text that cannot become one: a character has at most four bytes. */
  #takeBroken(before: string, text: string): string {
    const count = this.#ids.length - maxBytes;
    if (count < this.#emitted + maxBytes) return '';
    const certain = this.#decode(this.#ids.slice(0, count));
    return text.startsWith(certain) && certain.length > before.length ? this.#give(before, certain, count) : '';
  }

  #give(before: string, text: string, count: number): string {
    this.#ids = this.#ids.slice(this.#emitted);
    this.#emitted = count - this.#emitted;
    return text.slice(before.length);
  }
}
