/** Emits text as soon as it cannot change any more: whole characters, and spaces as `decode` would set them. */
export class TextStream {
  readonly #decode: (ids: number[]) => string;
  #ids: number[] = [];
  /** The ids before this one are there only for what they do to the text of those that follow. */
  #from = 0;

  constructor(decode: (ids: number[]) => string) {
    this.#decode = decode;
  }

  /** The text that `id` completes; often none. */
  push(id: number): string {
    this.#ids.push(id);
    return this.#take(false);
  }

  /** What was held back, U+FFFD for bytes that never became a character. The stream is then as new. */
  end(): string {
    const rest = this.#take(true);
    this.#ids = [];
    this.#from = 0;
    return rest;
  }

  #take(all: boolean): string {
    const before = this.#decode(this.#ids.slice(0, this.#from));
    const now = this.#decode(this.#ids);
    if (!all && (now.endsWith('\ufffd') || now.length <= before.length)) return '';
    this.#ids = this.#ids.slice(this.#from);
    this.#from = this.#ids.length;
    return now.slice(before.length);
  }
}
