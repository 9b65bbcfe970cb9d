import type { Example, RawRecord } from '../../data/index.ts';

/** The part of a row that its prediction repeats, so that the two can be matched. */
export interface Identity {
  /** The row's field `id`, where it has one. */
  readonly id?: unknown;
  /** Its text, question, prompt, or image file; of an embedding the text that is read, with the model's default prompt before it. */
  readonly text?: string;
  /** All of the row's own fields, where `ownFields` asks for them; images only where they are paths. */
  readonly fields?: Readonly<Record<string, unknown>>;
}

export function identityOf({ value, original }: RawRecord, example: Example, ownFields = false): Identity {
  const text = textOf(example);
  const fields = ownFields && Object.entries(original ?? value).filter(([, field]) => !isImage(field, example));
  return {
    ...(value.id !== undefined && { id: value.id }),
    ...(text !== undefined && { text }),
    ...(fields && { fields: Object.fromEntries(fields) }),
  };
}

/** Whether a field is the bytes or the pixels of an image, which a line of text has no room for. */
const isImage = (field: unknown, { kind }: Example): boolean =>
  typeof field === 'object' &&
  field !== null &&
  (ArrayBuffer.isView(field) ||
    ('bytes' in field && ArrayBuffer.isView(field.bytes)) ||
    (kind === 'image' && Array.isArray(field) && Array.isArray(field[0])));

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
