import { GraftError } from '../../base/index.ts';
import type { Message } from '../example.ts';
import type { Tokenizer } from '../tokenizer/index.ts';
import { compile } from './jinja.ts';
import { spanOfTurn } from './turns.ts';

export interface RenderOptions {
  readonly addGenerationPrompt?: boolean;
  readonly tools?: readonly unknown[] | undefined;
  readonly documents?: readonly unknown[] | undefined;
  /** What else the template asks for, such as `enable_thinking`. */
  readonly variables?: Readonly<Record<string, unknown>> | undefined;
}

// What stands for the marks of what the assistant says, while its turns are looked for.
const begin = '\uE010graft:begin\uE011';
const end = '\uE010graft:end\uE011';

/** Reasoning under the names that templates read. Source: `_alias_reasoning_fields` of transformers. */
function reasoned(message: Message): Message {
  const reasoning = message.reasoning_content ?? message.thinking ?? message.reasoning;
  return reasoning === undefined || reasoning === null
    ? message
    : { thinking: reasoning, ...message, reasoning_content: reasoning };
}

/**
 * The chat template itself, where it must exist.
 * @throws GraftError 'usage' for a conversation and a model without a chat template
 */
export function requireChatTemplate(chat: ChatTemplate | undefined, place: string, hint: string): ChatTemplate {
  if (chat) return chat;
  throw new GraftError('usage', 'the model has no chat template, which conversations need', { place, hint });
}

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

  /** The template of that name that came with the tokenizer; undefined when there is none. */
  static of(tokenizer: Tokenizer, name = 'default'): ChatTemplate | undefined {
    const source = tokenizer.chatTemplates[name];
    if (source === undefined) return undefined;
    const ids = {
      bos_token: tokenizer.bosId,
      eos_token: tokenizer.eosId,
      pad_token: tokenizer.padId,
      unk_token: tokenizer.unkId,
    };
    const special = Object.entries(ids).flatMap(([name, id]) =>
      id === undefined ? [] : [[name, tokenizer.idToToken(id)!]],
    );
    return new ChatTemplate(source, Object.fromEntries(special));
  }

  /** The conversation as text. @throws GraftError 'input' with the template's own words when it refuses */
  render(messages: readonly Message[], options: RenderOptions = {}): string {
    return this.#render(this.#plain, messages, options);
  }

  #render(
    template: (variables: Record<string, unknown>) => string,
    messages: readonly Message[],
    { addGenerationPrompt = false, tools, documents, variables }: RenderOptions,
  ): string {
    try {
      return template({
        messages: messages.map(reasoned),
        tools: tools ?? null,
        documents: documents ?? null,
        ...this.#special,
        ...variables,
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
    return this.#marks ? this.#bySigns(messages, tools, from) : this.#byRendering(messages, tools, from);
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

  #byRendering(messages: readonly Message[], tools: readonly unknown[] | undefined, from: number) {
    const render = (some: readonly Message[], addGenerationPrompt: boolean) =>
      this.render(some, { tools, addGenerationPrompt });
    const text = render(messages, false);
    const spans: [number, number][] = [];
    messages.forEach((message, i) => {
      if (message.role !== 'assistant' || i < from) return;
      const span = spanOfTurn(render, messages, i, text);
      if (!span || span[0] < (spans.at(-1)?.[1] ?? 0)) {
        throw new GraftError(
          'input',
          'the chat template has no assistant marks, and its turns cannot be told apart by rendering',
          {
            hint: 'Put {% generation %} and {% endgeneration %} around what the assistant says, or train on all tokens (data.train_on: all)',
          },
        );
      }
      spans.push(span);
    });
    return { text, spans };
  }
}
