import { GraftError } from '../../base/index.ts';
import type { Message } from '../example.ts';
import { type CompiledTemplate, compile } from '../jinja/index.ts';
import type { Tokenizer } from '../tokenizer/index.ts';
import { renderContinued } from './continue.ts';
import { spansOfMarks } from './marks.ts';
import { trace } from './trace.ts';
import { spansOfTurns, UnclearTurns } from './turns.ts';

/** What a chat template is rendered with, besides the messages. */
export interface RenderOptions {
  /** Whether the text ends with the beginning of the assistant's turn. Default: false. */
  readonly addGenerationPrompt?: boolean;
  /** Whether the text ends with the text of the last message, which the model is to go on with; or the field that has it. Default: false. */
  readonly continueFinalMessage?: boolean | string;
  /** Descriptions of the tools that the model may call. */
  readonly tools?: readonly unknown[] | undefined;
  /** Documents that the model may quote. */
  readonly documents?: readonly unknown[] | undefined;
  /** More variables of the template, such as `enable_thinking`. */
  readonly variables?: Readonly<Record<string, unknown>> | undefined;
}

/** What {% generation %} and {% endgeneration %} print while the assistant's spans are searched for. */
const marks = ['\uE010graft:begin\uE011', '\uE010graft:end\uE011'] as const;

/** The names that templates have for the reasoning of a turn. */
const reasoningFields = ['reasoning_content', 'thinking', 'reasoning'];

/**
 * The message as templates get it: without fields that are null, and with its reasoning under all names that templates read.
 * Source: `apply_chat_template` and `_alias_reasoning_fields` of transformers 5.
 */
function normalized(message: Message): Message {
  const present = Object.fromEntries(Object.entries(message).filter(([, value]) => value !== null)) as Message;
  const reasoning = reasoningFields.map((name) => present[name]).find((value) => value !== undefined);
  return reasoning === undefined ? present : { thinking: reasoning, ...present, reasoning_content: reasoning };
}

/** A template, and the same printing `marks`; equal where it has no {% generation %} blocks. */
interface Compiled {
  readonly source: string;
  readonly plain: CompiledTemplate;
  readonly marked: CompiledTemplate;
}

function compiled(source: string): Compiled {
  try {
    const plain = compile(source, ['', '']);
    return { source, plain, marked: /\{%[-+]?\s*generation\s*[-+]?%\}/.test(source) ? compile(source, marks) : plain };
  } catch (cause) {
    throw new GraftError('input', `the chat template is not valid Jinja: ${(cause as Error).message}`, { cause });
  }
}

/** What `act` returns, with its errors as the template's. */
function rejected<T>(act: () => T): T {
  try {
    return act();
  } catch (cause) {
    if (cause instanceof GraftError) throw cause;
    throw new GraftError('input', `the chat template rejects the conversation: ${(cause as Error).message}`, { cause });
  }
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
  readonly #default: Compiled;
  /** Renders conversations that have tools. */
  readonly #toolUse: Compiled;
  readonly #specialTokens: Readonly<Record<string, string>>;

  /**
   * Compiles a template.
   * @param source Jinja
   * @param specialTokens bos_token, eos_token and others, as text
   * @param toolUse the template for conversations that have tools, where it is another
   * @throws GraftError 'input' for a template that is not valid Jinja
   */
  constructor(source: string, specialTokens: Readonly<Record<string, string>> = {}, toolUse?: string) {
    this.#default = compiled(source);
    this.#toolUse = toolUse === undefined ? this.#default : compiled(toolUse);
    this.#specialTokens = specialTokens;
  }

  /** The tokenizer's template: the one named `default`, and `tool_use` where there are tools; undefined when it has none. */
  static of(tokenizer: Tokenizer): ChatTemplate | undefined {
    const { default: source, tool_use: toolUse } = tokenizer.chatTemplates;
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
    return new ChatTemplate(source, Object.fromEntries(special), toolUse);
  }

  /** Renders a conversation as text. @throws GraftError 'input' with the template's message when it rejects the conversation */
  render(messages: readonly Message[], options: RenderOptions = {}): string {
    const { continueFinalMessage: field = false, tools } = options;
    const render = (given: readonly Message[]) =>
      this.#run(given, options, (variables) => this.#templateFor(tools).plain.render(variables));
    if (field === false) return render(messages);
    if (options.addGenerationPrompt)
      throw new GraftError('usage', 'a conversation is continued, or has a new turn: not both');
    const name = field === true ? 'content' : field;
    const fields = reasoningFields.includes(name)
      ? [name, ...reasoningFields.filter((other) => other !== name)]
      : [name];
    const source = this.#templateFor(tools).source;
    return rejected(() => renderContinued(messages.map(normalized), fields, (part) => source.includes(part), render));
  }

  /** Whether the template that a conversation with these tools is rendered by names a field of messages, or a variable. */
  names(field: string, tools?: RenderOptions['tools']): boolean {
    const { source } = this.#templateFor(tools);
    return (reasoningFields.includes(field) ? reasoningFields : [field]).some((name) => source.includes(name));
  }

  #templateFor(tools: RenderOptions['tools']): Compiled {
    return tools === undefined ? this.#default : this.#toolUse;
  }

  /** What `act` makes with the variables of the template. */
  #run<T>(
    messages: readonly Message[],
    { addGenerationPrompt = false, tools, documents, variables }: RenderOptions,
    act: (variables: Record<string, unknown>) => T,
  ): T {
    return rejected(() =>
      act({
        messages: messages.map(normalized),
        tools: tools ?? null,
        documents: documents ?? null,
        ...this.#specialTokens,
        ...variables,
        add_generation_prompt: addGenerationPrompt,
      }),
    );
  }

  /**
   * Renders a conversation and finds in it what is learned: what {% generation %} marks, or else of each turn of the assistant
   * its text, its calls and the end-of-turn token, and nothing of what the generation prompt gives.
   * @param isLearned which of the assistant's messages are learned, by index; default: all
   * @param more documents and variables of the template
   * @returns the text, and spans [start, stop) of it in UTF-16 units
   * @throws GraftError 'input' when the template rejects the conversation, or it is not clear what in it is the assistant's
   */
  learned(
    messages: readonly Message[],
    tools?: readonly unknown[],
    isLearned: (index: number) => boolean = () => true,
    more: Pick<RenderOptions, 'documents' | 'variables'> = {},
  ): { text: string; spans: [start: number, stop: number][] } {
    const { plain, marked } = this.#templateFor(tools);
    const traced = (template: CompiledTemplate) => (part: readonly Message[], addGenerationPrompt: boolean) =>
      this.#run(part, { ...more, tools, addGenerationPrompt }, (variables) => trace(template, variables));
    try {
      return marked === plain
        ? spansOfTurns(traced(plain), messages, isLearned, this.#specialTokens.eos_token ?? '')
        : spansOfMarks(traced(marked)(messages, false), marks, isLearned);
    } catch (cause) {
      if (!(cause instanceof UnclearTurns)) throw cause;
      throw new GraftError('input', `what the model learns of the conversation is not clear: ${cause.message}`, {
        hint: 'Put {% generation %} and {% endgeneration %} around the assistant turns in the template, or train on all tokens (data.train_on: all)',
      });
    }
  }
}
