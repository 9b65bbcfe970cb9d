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
  /** Whether a text ends here, for a model that reads it rather than continues it: special tokens follow it. Default: false. */
  readonly closed?: boolean;
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
 * Makes the prompt that a model is trained to answer, after which it generates an answer, or after which answers are scored:
 * with the special tokens before a text (BOS), and none after it.
 * @throws GraftError 'usage' for a conversation where the model has no chat template, 'input' where the template refuses it
 */
export function makePrompt(source: PromptSource, options: PromptOptions): Prompt {
  const { text, special } = promptText(source, options);
  const prompt = options.tokenizer.encode(text, { addSpecialTokens: special });
  const ids = withoutMiddle(prompt, options.maxLength ?? Number.POSITIVE_INFINITY);
  return { ids, cutTokens: prompt.length - ids.length };
}

/**
 * The ids of an answer as it follows the prompt in a row. They are those of prompt and answer encoded together where that
 * leaves the prompt the tokens it has at inference, else the answer is encoded separately.
 * @param answer of a conversation: the content of the assistant's turn; the template may put more before it
 */
export function answerIds(source: PromptSource, answer: string, options: PromptOptions): Int32Array {
  const { tokenizer } = options;
  const { text, special } = promptText(source, options);
  const following = 'text' in source ? answer : turnUpTo(source, answer, text, options);
  const prompt = tokenizer.encode(text, { addSpecialTokens: special });
  const together = tokenizer.encode(text + following, { addSpecialTokens: special });
  const isSamePrompt = prompt.every((id, i) => together[i] === id) && together.length > prompt.length;
  return isSamePrompt ? together.slice(prompt.length) : encodeAfter(following, tokenizer);
}

/** The text of a prompt, and which special tokens are put around it: those of a conversation are in its text. */
function promptText(source: PromptSource, { chat, closed = false, place, hint }: PromptOptions) {
  if ('text' in source) return { text: source.text, special: closed ? true : ('before' as const) };
  const { messages, ...options } = source;
  return {
    text: requireChatTemplate(chat, place, hint).render(messages, {
      ...options,
      addGenerationPrompt: !options.continueFinalMessage,
    }),
    special: false,
  };
}

/** What the template prints after the prompt up to the end of the answer; the answer alone where it prints the prompt otherwise. */
function turnUpTo(
  { messages, ...more }: Extract<PromptSource, { messages: unknown }>,
  answer: string,
  prompt: string,
  { chat, place, hint }: PromptOptions,
): string {
  const turn = { role: 'assistant', content: answer };
  const whole = requireChatTemplate(chat, place, hint).render([...messages, turn], more);
  const content = answer.trim();
  const at = whole.startsWith(prompt) ? whole.indexOf(content, prompt.length) : -1;
  return at < 0 ? answer : whole.slice(prompt.length, at + content.length);
}

/** The ids of a text that follows another, without the space that some tokenizers put at the start of every text. */
function encodeAfter(text: string, tokenizer: Tokenizer): Int32Array {
  const encode = (s: string) => tokenizer.encode(s, { addSpecialTokens: false });
  for (const anchor of ['\n', '.', 'a']) {
    const [anchorIds, ids] = [encode(anchor), encode(anchor + text)];
    if (anchorIds.every((id, i) => ids[i] === id)) return ids.slice(anchorIds.length);
  }
  return encode(text);
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
    messages: messages.at(-1)?.role === 'assistant' ? messages.slice(0, -1) : messages,
    tools,
    documents,
    variables,
  };
}
