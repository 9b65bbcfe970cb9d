import type { Example, RawRecord } from '../../data/index.ts';

/** The part of a row that its prediction repeats, so that the two can be matched. */
export interface Identity {
  /** The row's field `id`, where it has one. */
  readonly id?: unknown;
  /** Its text, question, prompt, or image file; of an embedding the text that is read, with the model's default prompt before it. */
  readonly text?: string;
}

export function identityOf({ value }: RawRecord, example: Example): Identity {
  const text = textOf(example);
  return { ...(value.id !== undefined && { id: value.id }), ...(text !== undefined && { text }) };
}

function textOf(example: Example): string | undefined {
  switch (example.kind) {
    case 'labelled':
    case 'text':
      return example.text;
    case 'completion':
      return example.prompt;
    case 'question':
      return example.question;
    case 'tags':
      return example.words.join(' ');
    case 'image':
      return typeof example.image === 'string' ? example.image : undefined;
    case 'chat':
      return example.messages.findLast(({ role }) => role === 'user')?.content;
    default:
      return undefined;
  }
}
