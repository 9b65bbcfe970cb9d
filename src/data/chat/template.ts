import { GraftError } from '../../base/index.ts';
import type { Message } from '../example.ts';
import type { Tokenizer } from '../tokenizer/index.ts';
import { type CompiledTemplate, compile } from './jinja.ts';
import { type Render, spanOfTurn } from './turns.ts';

/** What a chat template is rendered with, besides the messages. */
export interface RenderOptions {
  /** Whether the text ends with the beginning of the assistant's turn. Default: false. */
  readonly addGenerationPrompt?: boolean;
  /** Descriptions of the tools that the model may call. */
  readonly tools?: readonly unknown[] | undefined;
  /** Documents that the model may quote. */
  readonly documents?: readonly unknown[] | undefined;
  /** More variables of the template, such as `enable_thinking`. */
  readonly variables?: Readonly<Record<string, unknown>> | undefined;
}

// What {% generation %} and {% endgeneration %} print while the assistant's spans are searched for.
const spanStart = '\uE010graft:begin\uE011';
const spanEnd = '\uE010graft:end\uE011';

/** The message with its reasoning under all names that templates read. Source: `_alias_reasoning_fields` of transformers. */
function withReasoning(message: Message): Message {
  const reasoning = message.reasoning_content ?? message.thinking ?? message.reasoning;
  return reasoning === undefined || reasoning === null
    ? message
    : { thinking: reasoning, ...message, reasoning_content: reasoning };
}

/**
 * Returns `chat`, or throws where the model has no chat template.
 * @throws GraftError 'usage' for a conversation without a chat template
 */
export function requireChatTemplate(chat: ChatTemplate | undefined, place: string, hint: string): ChatTemplate {
  if (chat) return chat;
  throw new GraftError('usage', 'the model has no chat template, which conversations need', { place, hint });
}

/**
 * A chat template that renders as transformers' `apply_chat_template` does. The rendered text contains the special tokens:
 * encode it without adding any.
 */
export class ChatTemplate {
  readonly #template: CompiledTemplate;
  /** Prints `spanStart` and `spanEnd` around {% generation %} blocks. */
  readonly #markedTemplate: CompiledTemplate;
  readonly #hasGenerationBlocks: boolean;
  readonly #specialTokens: Readonly<Record<string, string>>;

  /**
   * Compiles a template.
   * @param source Jinja
   * @param specialTokens bos_token, eos_token and others, as text
   * @throws GraftError 'input' for a template that is not valid Jinja
   */
  constructor(source: string, specialTokens: Readonly<Record<string, string>> = {}) {
    this.#hasGenerationBlocks = /\{%[-+]?\s*generation\s*[-+]?%\}/.test(source);
    this.#specialTokens = specialTokens;
    try {
      this.#template = compile(source, ['', '']);
      this.#markedTemplate = this.#hasGenerationBlocks ? compile(source, [spanStart, spanEnd]) : this.#template;
    } catch (cause) {
      throw new GraftError('input', `the chat template is not valid Jinja: ${(cause as Error).message}`, { cause });
    }
  }

  /** The tokenizer's template of this name; undefined when it has none. */
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

  /** Renders a conversation as text. @throws GraftError 'input' with the template's message when it rejects the conversation */
  render(messages: readonly Message[], options: RenderOptions = {}): string {
    return this.#render(this.#template, messages, options);
  }

  #render(
    template: CompiledTemplate,
    messages: readonly Message[],
    { addGenerationPrompt = false, tools, documents, variables }: RenderOptions,
  ): string {
    try {
      return template({
        messages: messages.map(withReasoning),
        tools: tools ?? null,
        documents: documents ?? null,
        ...this.#specialTokens,
        ...variables,
        add_generation_prompt: addGenerationPrompt,
      });
    } catch (cause) {
      throw new GraftError('input', `the chat template rejects the conversation: ${(cause as Error).message}`, {
        cause,
      });
    }
  }

  /**
   * Renders a conversation and finds the spans [start, stop) of the assistant's turns in it, end-of-turn tokens included.
   * @param from index of the first message whose span is returned
   * @throws GraftError 'input' when the template has no {% generation %} blocks and the turns cannot be found by rendering
   */
  renderWithAssistantSpans(
    messages: readonly Message[],
    tools?: readonly unknown[],
    from = 0,
  ): { text: string; spans: [number, number][] } {
    return this.#hasGenerationBlocks
      ? this.#spansByBlocks(messages, tools, from)
      : this.#spansByRendering(messages, tools, from);
  }

  #spansByBlocks(messages: readonly Message[], tools: readonly unknown[] | undefined, from: number) {
    const pieces = this.#render(this.#markedTemplate, messages, { tools }).split(spanStart);
    let text = pieces[0]!;
    const spans: [number, number][] = [];
    for (const piece of pieces.slice(1)) {
      const [generated, after = ''] = piece.split(spanEnd) as [string, string?];
      spans.push([text.length, text.length + generated.length]);
      text += generated + after;
    }
    const earlier = messages.slice(0, from).filter((m) => m.role === 'assistant').length;
    return { text, spans: spans.slice(earlier) };
  }

  #spansByRendering(messages: readonly Message[], tools: readonly unknown[] | undefined, from: number) {
    const render: Render = (part, addGenerationPrompt) => this.render(part, { tools, addGenerationPrompt });
    const text = render(messages, false);
    const spans: [number, number][] = [];
    messages.forEach((message, i) => {
      if (message.role !== 'assistant' || i < from) return;
      const span = spanOfTurn(render, messages, i, text);
      if (!span || span[0] < (spans.at(-1)?.[1] ?? 0)) {
        throw new GraftError(
          'input',
          'the chat template has no {% generation %} blocks, and the assistant turns cannot be found by rendering',
          {
            hint: 'Put {% generation %} and {% endgeneration %} around the assistant turns in the template, or train on all tokens (data.train_on: all)',
          },
        );
      }
      spans.push(span);
    });
    return { text, spans };
  }
}
