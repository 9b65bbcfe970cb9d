import { GraftError } from '../base/index.ts';
import {
  checkedIds,
  type Example,
  isBlank,
  keptTokens,
  makePrompt,
  type PromptSource,
  promptSourceOf,
  requireTokenizer,
} from '../data/index.ts';
import type { RowTools } from './task.ts';

/** Ids of a text or a pair of texts with their token types, and how many tokens were truncated. */
export interface TextIds {
  readonly ids: Int32Array;
  readonly types?: Int32Array;
  readonly cutTokens: number;
}

/**
 * The error for a row of a kind that the task does not support.
 * @param supported the rows that it supports
 */
export function unsupportedRow(example: Example, task: string, supported: string, place: string): GraftError {
  return new GraftError('usage', `${task} does not support rows of the kind '${example.kind}'`, {
    place,
    hint: `Give ${supported}`,
  });
}

/** Whether a prompt has no content at all. */
const isBlankPrompt = (source: PromptSource): boolean =>
  'text' in source
    ? isBlank(source.text)
    : source.messages.every(({ content, tool_calls: calls }) => isBlank(content) && calls === undefined);

/** The ids of a conversation or a completion up to its answer, none where it has no content; undefined for other kinds of rows. */
export function promptIds(example: Example, place: string, tools: RowTools): TextIds | undefined {
  const source = promptSourceOf(example);
  if (!source) return undefined;
  if (isBlankPrompt(source)) return { ids: new Int32Array(), cutTokens: 0 };
  const tokenizer = requireTokenizer(tools.tokenizer, place);
  const hint = 'Use rows of text and label, or a model with a chat template';
  const prompt = makePrompt(source, {
    tokenizer,
    chat: tools.chat,
    maxLength: tools.maxLength,
    closed: true,
    place,
    hint,
  });
  if (prompt.ids.length > 0) checkedIds([...prompt.ids], tools.vocabSize, place);
  return prompt;
}

/**
 * The ids of a text, a pair, or a row of ids, truncated to `maxLength`; of a pair, the longer text is truncated first. None where the
 * text has no tokens.
 */
export function textIds(example: Example, task: string, place: string, tools: RowTools): TextIds {
  if (example.kind === 'tokens') {
    const ids = checkedIds(example.ids, tools.vocabSize, place);
    const types = example.types && Int32Array.from(example.types);
    if (types && types.length !== ids.length) {
      throw new GraftError('input', `${ids.length} ids have ${types.length} token types`, { place });
    }
    const kept = keptTokens({ length: ids.length, room: tools.maxLength, truncate: tools.truncate ?? 'end' });
    return {
      ids: Int32Array.from(kept, (i) => ids[i]!),
      ...(types && { types: Int32Array.from(kept, (i) => types[i]!) }),
      cutTokens: ids.length - kept.length,
    };
  }
  if (example.kind !== 'text' && example.kind !== 'labelled') {
    throw unsupportedRow(example, task, 'rows with text and label, or ids and labels', place);
  }
  const tokenizer = requireTokenizer(tools.tokenizer, place);
  const pair = example.kind === 'labelled' ? example.pair : undefined;
  const texts = [example.text, ...(pair === undefined ? [] : [pair])].map((text) =>
    tokenizer.encode(text, { addSpecialTokens: false }),
  );
  if (texts.every(({ length }) => length === 0)) return { ids: new Int32Array(), cutTokens: 0 };
  const withSpecialTokens = (parts: readonly Int32Array[]) =>
    tokenizer.withSpecialTokens(...(parts as unknown as [Int32Array] | [Int32Array, Int32Array]));
  const specialTokens = withSpecialTokens(texts.map(() => new Int32Array())).ids.length;
  const room = Math.max(0, tools.maxLength - specialTokens);
  const tokens = texts.reduce((sum, { length }) => sum + length, 0);
  const lengths = texts.map(({ length }) => length);
  for (let excess = tokens - room; excess > 0; excess--) lengths[lengths.indexOf(Math.max(...lengths))]!--;
  const truncate = tools.truncate ?? (tokenizer.truncationSide === 'left' ? 'start' : 'end');
  const keptPart = (text: Int32Array, room: number) =>
    Int32Array.from(keptTokens({ length: text.length, room, truncate }), (i) => text[i]!);
  const { ids, types } = withSpecialTokens(texts.map((text, i) => keptPart(text, lengths[i]!)));
  if (ids.length > 0) checkedIds([...ids], tools.vocabSize, place);
  return { ids, ...(types.some((type) => type !== 0) && { types }), cutTokens: Math.max(0, tokens - room) };
}
