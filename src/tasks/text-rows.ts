import { GraftError } from '../base/index.ts';
import { checkedIds, type Example, makePrompt, promptSourceOf, requireTokenizer } from '../data/index.ts';
import type { RowTools } from './task.ts';

/** Ids of a text or a pair of texts with their token types, and how many tokens did not fit. */
export interface TextIds {
  readonly ids: Int32Array;
  readonly types?: Int32Array;
  readonly cut: number;
}

/** @throws GraftError 'usage' for rows that are not what the task is about */
export function unfit(example: Example, task: string, wanted: string, place: string): GraftError {
  return new GraftError('usage', `rows of the kind '${example.kind}' are not for ${task}`, {
    place,
    hint: `It needs ${wanted}`,
  });
}

/** A conversation or a completion up to its answer; undefined for other kinds of rows. */
export function conversationIds(example: Example, place: string, tools: RowTools): TextIds | undefined {
  const source = promptSourceOf(example);
  if (!source) return undefined;
  const tokenizer = requireTokenizer(tools.tokenizer, place);
  const hint = 'Use rows of text and label, or a model with a chat template';
  const prompt = makePrompt(source, { tokenizer, chat: tools.chat, maxLength: tools.maxLength, place, hint });
  checkedIds([...prompt.ids], tools.vocabSize, place);
  return prompt;
}

/** A text, a pair or ids as given, cut to the length of a row: of a pair, the longer text gives way. */
export function textIds(example: Example, task: string, place: string, tools: RowTools): TextIds {
  if (example.kind === 'tokens') {
    const ids = checkedIds(example.ids, tools.vocabSize, place);
    const types = example.types && Int32Array.from(example.types);
    if (types && types.length !== ids.length) {
      throw new GraftError('input', `${ids.length} ids have ${types.length} token types`, { place });
    }
    const fits = ids.subarray(0, tools.maxLength);
    return { ids: fits, ...(types && { types: types.subarray(0, fits.length) }), cut: ids.length - fits.length };
  }
  if (example.kind !== 'text' && example.kind !== 'labelled') {
    throw unfit(example, task, 'text and label, or ids and labels', place);
  }
  const tokenizer = requireTokenizer(tools.tokenizer, place);
  const pair = example.kind === 'labelled' ? example.pair : undefined;
  const parts = [example.text, ...(pair === undefined ? [] : [pair])].map((text) =>
    tokenizer.encode(text, { addSpecialTokens: false }),
  );
  const frame = (texts: readonly Int32Array[]) =>
    tokenizer.withSpecialTokens(...(texts as unknown as [Int32Array] | [Int32Array, Int32Array]));
  const special = frame(parts.map(() => new Int32Array())).ids.length;
  const room = Math.max(0, tools.maxLength - special);
  const whole = parts.reduce((sum, { length }) => sum + length, 0);
  const lengths = parts.map(({ length }) => length);
  for (let over = whole - room; over > 0; over--) lengths[lengths.indexOf(Math.max(...lengths))]!--;
  const { ids, types } = frame(parts.map((part, i) => part.subarray(0, lengths[i])));
  if (ids.length === 0) throw new GraftError('input', 'the text has no tokens', { place });
  checkedIds([...ids], tools.vocabSize, place);
  return { ids, ...(types.some((type) => type !== 0) && { types }), cut: Math.max(0, whole - room) };
}
