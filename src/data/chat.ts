import { Template } from '@huggingface/jinja';
import { GraftError } from '../base/index.ts';
import type { Message } from './formats.ts';
import type { Tokenizer } from './tokenizer.ts';

export interface RenderOptions {
  readonly addGenerationPrompt?: boolean;
  readonly tools?: readonly unknown[] | undefined;
}

// Private-use characters that stand for the marks of what the assistant says.
const begin = '\uE010';
const end = '\uE011';

/**
 * `{% generation %}` marks as printed characters. They are block tags, so the line break behind one goes (trim_blocks)
 * and the indentation before one goes (lstrip_blocks), unless `-` or `+` says otherwise.
 */
function marked(template: string): string {
  return template
    .replaceAll(/([ \t]*)\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}(\n?)/g, (_, indent: string, left: string, ending: string | undefined, right: string, newline: string, at: number, whole: string) => {
      const startsLine = at === 0 || whole[at - 1] === '\n';
      const before = left === '' && startsLine ? '' : indent;
      const after = right === '' ? '' : newline;
      return `${before}{{${left === '-' ? '-' : ''} '${ending ? end : begin}' ${right === '-' ? '-' : ''}}}${after}`;
    });
}

/**
 * A chat template with the meaning that transformers' `apply_chat_template` gives it. The text it makes holds the special
 * tokens already: tokenise it without adding any.
 */
export class ChatTemplate {
  readonly #template: Template;
  readonly #marks: boolean;
  readonly #special: Readonly<Record<string, string>>;

  /** @param special bos_token, eos_token and such, as text @throws GraftError 'input' for a template that is no Jinja */
  constructor(source: string, special: Readonly<Record<string, string>> = {}) {
    this.#marks = /\{%[-+]?\s*generation\s*[-+]?%\}/.test(source);
    this.#special = special;
    try {
      this.#template = new Template(marked(source));
    } catch (cause) {
      throw new GraftError('input', `the chat template cannot be read: ${(cause as Error).message}`, { cause });
    }
  }

  static of(tokenizer: Tokenizer): ChatTemplate | undefined {
    if (tokenizer.chatTemplate === undefined) return undefined;
    const ids = { bos_token: tokenizer.bosId, eos_token: tokenizer.eosId, pad_token: tokenizer.padId, unk_token: tokenizer.unkId };
    const special = Object.entries(ids).flatMap(([name, id]) => (id === undefined ? [] : [[name, tokenizer.idToToken(id)!]]));
    return new ChatTemplate(tokenizer.chatTemplate, Object.fromEntries(special));
  }

  /** The conversation as text. @throws GraftError 'input' with the template's own words when it refuses */
  render(messages: readonly Message[], options: RenderOptions = {}): string {
    return this.#render(messages, options).replaceAll(begin, '').replaceAll(end, '');
  }

  #render(messages: readonly Message[], { addGenerationPrompt = false, tools }: RenderOptions): string {
    try {
      return this.#template.render({
        messages: structuredClone(messages),
        ...(tools && { tools }),
        ...this.#special,
        add_generation_prompt: addGenerationPrompt,
      });
    } catch (cause) {
      throw new GraftError('input', `the chat template refuses the conversation: ${(cause as Error).message}`, { cause });
    }
  }

  /**
   * The whole conversation, and the spans [start, stop) of what the assistant says in it, end-of-turn token included.
   * @param from turns before this one are not learned
   * @throws GraftError 'input' when the template neither marks them nor lets them be found
   */
  learned(messages: readonly Message[], tools?: readonly unknown[], from = 0): { text: string; spans: [number, number][] } {
    return this.#marks ? this.#bySigns(messages, tools, from) : this.#byPrefixes(messages, tools, from);
  }

  #bySigns(messages: readonly Message[], tools: readonly unknown[] | undefined, from: number) {
    const pieces = this.#render(messages, { tools }).split(begin);
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
        throw new GraftError('input', 'the chat template has no assistant marks, and its turns cannot be told apart by rendering', {
          mend: 'Put {% generation %} and {% endgeneration %} around what the assistant says, or train on all tokens (data.train_on: all)',
        });
      }
      spans.push([before.length, through.trimEnd().length]);
    });
    return { text, spans };
  }
}
