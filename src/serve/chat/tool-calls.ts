import type { ToolForm, WrittenCall } from './tool-forms.ts';

/** What is certain of an answer after more of it has come. */
export interface Sorted {
  /** Text of the answer. */
  readonly content: string;
  readonly calls: readonly WrittenCall[];
}

/**
 * Sorts an answer into its text and its calls of tools, piece by piece. Text that may be the beginning of a call is held back; calls
 * come at the end, whole. What looks like calls and is none, or calls a tool that does not exist, is text.
 */
export class ToolCallReader {
  readonly #form: ToolForm;
  readonly #names: ReadonlySet<string>;
  /** Text that is neither given nor certain. */
  #held = '';
  #mode: 'start' | 'text' | 'calls';

  constructor(form: ToolForm, names: readonly string[]) {
    this.#form = form;
    this.#names = new Set(names);
    this.#mode = form.begin === undefined ? 'start' : 'text';
  }

  /** @param begins whether a special token that begins calls stands before the text */
  push(text: string, begins = false): string {
    if (begins && this.#mode !== 'calls') {
      const before = this.#held;
      this.#held = this.#form.begin! + text;
      this.#mode = 'calls';
      return before;
    }
    this.#held += text;
    if (this.#mode === 'start') {
      const first = this.#held.trimStart();
      const tag = '<|python_tag|>';
      if (first === '' || (tag.startsWith(first) && first.length < tag.length)) return '';
      this.#mode = first.startsWith('{') || first.startsWith(tag) ? 'calls' : 'text';
    }
    if (this.#mode === 'calls') return '';
    const { begin } = this.#form;
    const at = begin === undefined ? -1 : this.#held.indexOf(begin);
    if (at >= 0) this.#mode = 'calls';
    return this.#take(at >= 0 ? at : this.#held.length - this.#uncertain());
  }

  /** Ends the answer: its last text and its calls. */
  end(): Sorted {
    const held = this.#held;
    this.#held = '';
    if (this.#mode !== 'calls') return { content: held, calls: [] };
    const calls = this.#form.read(held.slice(held.startsWith(this.#form.begin ?? '\0') ? this.#form.begin!.length : 0));
    if (!calls?.every(({ name }) => this.#names.has(name))) return { content: held, calls: [] };
    return { content: '', calls };
  }

  #take(length: number): string {
    const text = this.#held.slice(0, length);
    this.#held = this.#held.slice(length);
    return text;
  }

  /** Length of the end of the held text that may be the beginning of calls, with the white space before it. */
  #uncertain(): number {
    const begin = this.#form.begin ?? '';
    let length = Math.min(begin.length - 1, this.#held.length);
    while (length > 0 && !this.#held.endsWith(begin.slice(0, length))) length--;
    if (length < 0) length = 0;
    const before = this.#held.slice(0, this.#held.length - length);
    return begin === '' ? 0 : this.#held.length - before.trimEnd().length;
  }
}
