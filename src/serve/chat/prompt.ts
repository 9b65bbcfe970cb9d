import { type ChatTemplate, type Message, makePrompt, type Tokenizer, toMessages } from '../../data/index.ts';
import type { Encoder } from '../encoder.ts';
import { badRequest } from '../errors.ts';
import type { Limits } from '../limits.ts';
import type { ChatFields, ChatMessage, Tool } from '../wire/index.ts';

/** What a conversation is made a prompt with. */
export interface ChatSource {
  readonly tokenizer: Tokenizer;
  /** Undefined for a model without one. */
  readonly chat: ChatTemplate | undefined;
  readonly limits: Limits;
  readonly encoder: Encoder;
}

/** Variables that the template has anyway, and a request must not change. */
const reserved = new Set(['messages', 'tools', 'documents', 'add_generation_prompt']);

/** A message as templates read it. */
function messageOf(message: ChatMessage, at: number, chat: ChatTemplate): Message {
  if (message.role === 'developer')
    return toMessages([{ ...message, role: chat.names('developer') ? 'developer' : 'system' }])[0]!;
  if (message.role !== 'assistant') return toMessages([message])[0]!;
  const { tool_calls, refusal: _, audio: __, function_call: ___, annotations: ____, content, ...rest } = message;
  const parts =
    typeof content === 'string' || !content
      ? content
      : content.map((part) => ({
          type: 'text' as const,
          text: part.type === 'text' ? part.text : part.refusal,
        }));
  const calls = tool_calls?.map(({ id, type, function: { name, arguments: json } }, i) => ({
    id,
    type,
    // Templates print arguments as JSON of their own, from an object.
    function: { name, arguments: argumentsOf(json, `messages[${at}].tool_calls[${i}].function.arguments`) },
  }));
  return toMessages([
    { ...rest, ...(parts && { content: parts }), ...(calls && calls.length > 0 && { tool_calls: calls }) },
  ])[0]!;
}

function argumentsOf(json: string, param: string): unknown {
  try {
    const value: unknown = JSON.parse(json === '' ? '{}' : json);
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value;
  } catch {}
  throw badRequest(`'${param}' is wrong: expected a JSON object, as text.`, param, 'invalid');
}

/**
 * The prompt of a conversation: the template's text, and its ids.
 * @param tools that the model is told of
 * @throws RequestError 400 for a model without a template, and GraftError 'input' where the template refuses the conversation
 */
export function chatPrompt(
  { tokenizer, chat, limits, encoder }: ChatSource,
  { messages, chat_template_kwargs: variables }: Pick<ChatFields, 'messages' | 'chat_template_kwargs'>,
  tools: readonly Tool[] | undefined,
): readonly number[] {
  if (!chat) {
    throw badRequest(
      'The model has no chat template. Use /v1/completions, or a model that has one.',
      'messages',
      'no_chat_template',
    );
  }
  if (messages.length > limits.messages)
    throw badRequest(`There are more than ${limits.messages} messages.`, 'messages', 'too_many');
  const taken = Object.keys(variables ?? {}).find((name) => reserved.has(name));
  if (taken) throw badRequest(`'chat_template_kwargs' cannot set '${taken}'.`, 'chat_template_kwargs', 'invalid');
  const unread = Object.keys(variables ?? {}).find((name) => !chat.names(name, tools));
  if (unread !== undefined) {
    throw badRequest(
      `The model's template does not read '${unread.slice(0, 80)}'.`,
      'chat_template_kwargs',
      'unsupported',
    );
  }
  if (tools && !chat.names('tools', tools)) {
    throw badRequest(
      "The model's chat template does not print tools. Use a model whose template does.",
      'tools',
      'unsupported',
    );
  }
  encoder.checkLength(
    messages.flatMap(({ content }) =>
      typeof content === 'string' ? [content] : (content ?? []).map((part) => ('text' in part ? part.text : '')),
    ),
    'messages',
  );
  const source = { messages: messages.map((message, i) => messageOf(message, i, chat)), tools, variables };
  return [...makePrompt(source, { tokenizer, chat, place: 'messages', hint: 'Use /v1/completions' }).ids];
}
