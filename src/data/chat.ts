import { GraftError } from '../base/index.ts';
import type { Message } from './formats.ts';
import { compile } from './jinja.ts';
import type { Tokenizer } from './tokenizer.ts';

export interface RenderOptions {
  readonly addGenerationPrompt?: boolean;
  readonly tools?: readonly unknown[] | undefined;
}

// What stands for the marks of what the assistant says, while its turns are looked for.
const begin = '\uE010graft:begin\uE011';
const end = '\uE010graft:end\uE011';

/**
 * A chat template with the meaning that transformers' `apply_chat_template` gives it. The text it makes holds the special
 * tokens already: tokenise it without adding any.
 */
export class ChatTemplate {
  readonly #plain: (variables: Record<string, unknown>) => string;
  readonly #marked: (variables: Record<string, unknown>) => string;
  readonly #marks: boolean;
  readonly #special: Readonly<Record<string, string>>;

  /** @param special bos_token, eos_token and such, as text @throws GraftError 'input' for a template that is no Jinja */
  constructor(source: string, special: Readonly<Record<string, string>> = {}) {
    this.#marks = /\{%[-+]?\s*generation\s*[-+]?%\}/.test(source);
    this.#special = special;
    try {
      this.#plain = compile(source, ['', '']);
      this.#marked = this.#marks ? compile(source, [begin, end]) : this.#plain;
    } catch (cause) {
      throw new GraftError('input', `the chat template cannot be read: ${(cause as Error).message}`, { cause });
    }
  }

  static of(tokenizer: Tokenizer): ChatTemplate | undefined {
    if (tokenizer.chatTemplate === undefined) return undefined;
    const ids = {
      bos_token: tokenizer.bosId,
      eos_token: tokenizer.eosId,
      pad_token: tokenizer.padId,
      unk_token: tokenizer.unkId,
    };
    const special = Object.entries(ids).flatMap(([name, id]) =>
      id === undefined ? [] : [[name, tokenizer.idToToken(id)!]],
    );
    return new ChatTemplate(tokenizer.chatTemplate, Object.fromEntries(special));
  }

  /** The conversation as text. @throws GraftError 'input' with the template's own words when it refuses */
  render(messages: readonly Message[], options: RenderOptions = {}): string {
    return this.#render(this.#plain, messages, options);
  }

  #render(
    template: (variables: Record<string, unknown>) => string,
    messages: readonly Message[],
    { addGenerationPrompt = false, tools }: RenderOptions,
  ): string {
    try {
      return template({
        messages: structuredClone(messages),
        tools: tools ? structuredClone(tools) : null,
        documents: null,
        ...this.#special,
        add_generation_prompt: addGenerationPrompt,
      });
    } catch (cause) {
      throw new GraftError('input', `the chat template refuses the conversation: ${(cause as Error).message}`, {
        cause,
      });
    }
  }

  /**
   * The whole conversation, and the spans [start, stop) of what the assistant says in it, end-of-turn token included.
   * @param from turns before this one are not learned
   * @throws GraftError 'input' when the template neither marks them nor lets them be found
   */
  learned(
    messages: readonly Message[],
    tools?: readonly unknown[],
    from = 0,
  ): { text: string; spans: [number, number][] } {
    return this.#marks ? this.#bySigns(messages, tools, from) : this.#byPrefixes(messages, tools, from);
  }

  #bySigns(messages: readonly Message[], tools: readonly unknown[] | undefined, from: number) {
    const pieces = this.#render(this.#marked, messages, { tools }).split(begin);
    let text = pieces[0]!;
    const spans: [number, number][] = [];
    for (const piece of pieces.slice(1)) {
      const [said, after = ''] = piece.split(end) as [string, string?];
      spans.push([text.length, text.length + said.length]);
      text += said + after;
    }
    const earlier = messages.slice(0, from).filter((m) => m.role === 'assistant').length;
    return { text, spans: spans.slice(earlier) };
  }

  /** A turn is what rendering it adds to rendering all before it with the generation prompt. */
  #byPrefixes(messages: readonly Message[], tools: readonly unknown[] | undefined, from: number) {
    const text = this.render(messages, { tools });
    const spans: [number, number][] = [];
    messages.forEach((message, i) => {
      if (message.role !== 'assistant' || i < from) return;
      const before = this.render(messages.slice(0, i), { tools, addGenerationPrompt: true });
      const through = this.render(messages.slice(0, i + 1), { tools });
      if (!through.startsWith(before) || !text.startsWith(through.trimEnd())) {
        throw new GraftError(
          'input',
          'the chat template has no assistant marks, and its turns cannot be told apart by rendering',
          {
            mend: 'Put {% generation %} and {% endgeneration %} around what the assistant says, or train on all tokens (data.train_on: all)',
          },
        );
      }
      spans.push([before.length, through.trimEnd().length]);
    });
    return { text, spans };
  }
}
