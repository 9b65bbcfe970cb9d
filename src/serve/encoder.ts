import type { Tokenizer } from '../data/index.ts';
import { badRequest } from './errors.ts';

/** Encodes texts of requests, and refuses those that are too long for the model before the work is done. */
export class Encoder {
  readonly #tokenizer: Tokenizer;
  readonly #contextLength: number;
  /** UTF-16 units that no text of so many tokens exceeds. */
  readonly #longest: number;

  constructor(tokenizer: Tokenizer, contextLength: number) {
    this.#tokenizer = tokenizer;
    this.#contextLength = contextLength;
    let longest = 1;
    for (let id = 0; id < tokenizer.vocabSize; id++) longest = Math.max(longest, tokenizer.bytesOf(id).length);
    this.#longest = longest * contextLength;
  }

  /** @throws RequestError 400 for texts that cannot have as few tokens as the model reads */
  checkLength(texts: readonly string[], param: string): void {
    const length = texts.reduce((sum, text) => sum + text.length, 0);
    if (length <= this.#longest) return;
    const problem = `The text of '${param}' has more than the ${this.#contextLength} tokens that the model reads.`;
    throw badRequest(problem, param, 'context_length_exceeded');
  }

  /** @throws RequestError 400 as `checkLength` */
  encode(text: string, addSpecialTokens: boolean | 'before', param: string): number[] {
    this.checkLength([text], param);
    return [...this.#tokenizer.encode(text, { addSpecialTokens })];
  }
}
