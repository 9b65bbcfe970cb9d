import type { Example, Message } from '../example.ts';
import type { Tokenizer } from '../tokenizer/index.ts';
import { type ChatTemplate, type RenderOptions, requireChatTemplate } from './template.ts';

/** What a prompt is made from: text to continue, or a conversation whose next turn the model generates. */
export type PromptSource =
  | { readonly text: string }
  | ({ readonly messages: readonly Message[] } & Omit<RenderOptions, 'addGenerationPrompt'>);

export interface PromptOptions {
  readonly tokenizer: Tokenizer;
  /** Required for a conversation. */
  readonly chat: ChatTemplate | undefined;
  /** Tokens; a longer prompt loses its middle. Default: no limit. */
  readonly maxLength?: number;
  /** Where the prompt comes from, and what to do where a conversation has no chat template; for errors. */
  readonly place: string;
  readonly hint: string;
}

export interface Prompt {
  /** The tokens of the prompt, at most `maxLength`. */
  readonly ids: Int32Array;
  /** How many tokens were removed from its middle. */
  readonly cutTokens: number;
}

/**
 * Makes the prompt after which a model generates an answer, or after which answers are scored.
 * @throws GraftError 'usage' for a conversation where the model has no chat template, 'input' where the template refuses it
 */
export function makePrompt(source: PromptSource, options: PromptOptions): Prompt {
  const prompt = promptIds(source, options);
  const ids = withoutMiddle(prompt, options.maxLength ?? Number.POSITIVE_INFINITY);
  return { ids, cutTokens: prompt.length - ids.length };
}

function promptIds(source: PromptSource, { tokenizer, chat, place, hint }: PromptOptions): Int32Array {
  if ('text' in source) return tokenizer.encode(source.text);
  const { messages, ...options } = source;
  const text = requireChatTemplate(chat, place, hint).render(messages, { ...options, addGenerationPrompt: true });
  return tokenizer.encode(text, { addSpecialTokens: false });
}

/** A prompt that is too long loses its middle: the question is at its beginning, and the start of the answer at its end. */
function withoutMiddle(ids: Int32Array, maxLength: number): Int32Array {
  if (ids.length <= maxLength) return ids;
  const tail = Math.min(32, Math.floor(maxLength / 4));
  return Int32Array.of(...ids.subarray(0, maxLength - tail), ...ids.subarray(ids.length - tail));
}

/**
 * The part of a row before its last answer: a conversation up to the last turn of the assistant, or the prompt of a
 * completion. Undefined for rows of other kinds.
 */
export function promptSourceOf(example: Example): PromptSource | undefined {
  if (example.kind === 'completion') return { text: example.prompt };
  if (example.kind !== 'chat') return undefined;
  const { messages, tools, documents, variables } = example;
  return {
    messages: messages.at(-1)!.role === 'assistant' ? messages.slice(0, -1) : messages,
    tools,
    documents,
    variables,
  };
}
