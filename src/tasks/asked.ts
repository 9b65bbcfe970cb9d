import { GraftError } from '../base/index.ts';
import type { ChatTemplate, Example, Tokenizer } from '../data/index.ts';

/**
 * Ids of what stands before the last answer of a row: of a conversation up to the assistant's last turn, with the template's
 * prompt for it, or of the prompt of a completion; undefined for other kinds of rows.
 * @throws GraftError 'usage' for a conversation where the model has no chat template
 */
export function promptIdsOf(
  example: Example,
  place: string,
  tokenizer: Tokenizer,
  chat: ChatTemplate | undefined,
): Int32Array | undefined {
  if (example.kind === 'completion') return tokenizer.encode(example.prompt);
  if (example.kind !== 'chat') return undefined;
  if (!chat) {
    throw new GraftError('usage', 'this model has no chat template, and the rows are conversations', {
      place,
      hint: 'Use rows of text and label, or a model with a template',
    });
  }
  const { messages, tools } = example;
  const before = messages.at(-1)!.role === 'assistant' ? messages.slice(0, -1) : messages;
  return tokenizer.encode(chat.render(before, { addGenerationPrompt: true, tools }), { addSpecialTokens: false });
}

/** A prompt that is too long loses its middle: the question stands at the beginning, and where to answer at the end. */
export function shortenedPrompt(prompt: Int32Array, room: number): Int32Array {
  if (prompt.length <= room) return prompt;
  const tail = Math.min(32, Math.floor(room / 4));
  return Int32Array.of(...prompt.subarray(0, room - tail), ...prompt.subarray(prompt.length - tail));
}
