import { z } from 'zod';
import {
  alpacaContent,
  alpacaSchema,
  commonColumns,
  messagesContent,
  messagesSchema,
  promptCompletionContent,
  promptCompletionSchema,
  shareGptContent,
  shareGptSchema,
} from './chat-rows.ts';
import { exactNumberText } from './exact-json.ts';
import type { Answer, Example, ExampleContent, Label } from './example.ts';

/** The formats of rows that are detected from their fields (docs/recipe.md, Rows). */
export const formatNames = [
  'messages',
  'sharegpt',
  'prompt-completion',
  'alpaca',
  'text',
  'labelled',
  'pairs',
  'tags',
  'question',
  'image',
  'tokens',
] as const;

/** A format of rows. */
export type Format = (typeof formatNames)[number];

/** A label; an integer that JavaScript's numbers cannot hold is its text. */
const labelSchema = z.preprocess(
  (value) => (typeof value === 'object' && value !== null && exactNumberText(value)) || value,
  z.union([z.string(), z.number(), z.boolean(), z.array(z.union([z.string(), z.number()]))]),
);
type LabelField = z.infer<typeof labelSchema> | null | undefined;
const toLabel = (value: LabelField): Label | undefined =>
  typeof value === 'boolean' ? String(value) : value === null || value === '' ? undefined : value;

const idsSchema = z.array(z.int());
/** A row of token ids; also the rows of the format `batches`. */
export const tokensSchema = z.looseObject({
  ids: idsSchema,
  labels: z.union([z.number(), z.array(z.number())]).nullish(),
  types: idsSchema.nullish(),
  pair_ids: idsSchema.nullish(),
});
export const tokensContent = (row: z.infer<typeof tokensSchema>): ExampleContent => ({
  kind: 'tokens',
  ids: row.ids,
  labels: row.labels ?? undefined,
  ...(row.types && { types: row.types }),
  ...(row.pair_ids && { pairIds: row.pair_ids }),
});

/** Answers as a list of objects, or as SQuAD has them: an object of two lists. */
const answersSchema = z.union([
  z.array(z.looseObject({ text: z.string(), answer_start: z.int().nonnegative() })),
  z
    .looseObject({ text: z.array(z.string()), answer_start: z.array(z.int().nonnegative()) })
    .refine(({ text, answer_start: starts }) => text.length === starts.length, {
      path: ['answer_start'],
      error: 'expected one for each text',
    }),
]);
type AnswersField = z.infer<typeof answersSchema> | null | undefined;

/** The UTF-16 offset of an offset in code points, in which SQuAD counts characters. */
function utf16Offset(text: string, codePoints: number): number {
  let offset = 0;
  for (let n = 0; n < codePoints && offset < text.length; n++) offset += text.codePointAt(offset)! > 0xffff ? 2 : 1;
  return offset;
}

function toAnswers(value: AnswersField, context: string): Answer[] | undefined {
  if (!value) return undefined;
  const list = Array.isArray(value)
    ? value
    : value.text.map((text, i) => ({ text, answer_start: value.answer_start[i]! }));
  return list.map(({ text, answer_start }) => ({ text, start: utf16Offset(context, answer_start) }));
}

interface FormatEntry {
  /** A row of this format has all of these columns, */
  readonly columns: readonly string[];
  /** and none of these, which belong to another format. */
  readonly excludedColumns?: readonly string[];
  /** The column of a row whose answer is to be predicted, where that row has the columns of no format. */
  readonly askingColumn?: string;
  readonly schema: z.ZodType;
  readonly read: (row: never) => ExampleContent & Pick<Example, 'unused'>;
}

/** The data formats by name: how a row is recognised, checked and read. */
export const formats: Readonly<Record<Format, FormatEntry>> = {
  messages: { columns: ['messages'], schema: messagesSchema, read: messagesContent },
  sharegpt: { columns: ['conversations'], schema: shareGptSchema, read: shareGptContent },
  'prompt-completion': {
    columns: ['prompt', 'completion'],
    askingColumn: 'prompt',
    schema: promptCompletionSchema,
    read: promptCompletionContent,
  },
  alpaca: {
    columns: ['instruction', 'output'],
    askingColumn: 'instruction',
    schema: alpacaSchema,
    read: alpacaContent,
  },
  text: {
    columns: ['text'],
    excludedColumns: ['label', 'text_pair'],
    schema: z.looseObject({ text: z.string() }),
    read: (row: { text: string }) => ({ kind: 'text', text: row.text }),
  },
  labelled: {
    columns: ['text', 'label'],
    schema: z.looseObject({ text: z.string(), text_pair: z.string().nullish(), label: labelSchema.nullish() }),
    read: (row: { text: string; text_pair?: string | null; label?: LabelField }) => ({
      kind: 'labelled',
      text: row.text,
      pair: row.text_pair ?? undefined,
      label: toLabel(row.label),
    }),
  },
  pairs: {
    columns: ['text', 'text_pair'],
    excludedColumns: ['label'],
    schema: z.looseObject({ text: z.string(), text_pair: z.string() }),
    read: (row: { text: string; text_pair: string }) => ({
      kind: 'labelled',
      text: row.text,
      pair: row.text_pair,
      label: undefined,
    }),
  },
  tags: {
    columns: ['tokens'],
    schema: z.looseObject({ tokens: z.array(z.string()), tags: z.array(z.union([z.string(), z.number()])).nullish() }),
    read: (row: { tokens: string[]; tags?: (string | number)[] | null }) => ({
      kind: 'tags',
      words: row.tokens,
      tags: row.tags?.map(String),
    }),
  },
  question: {
    columns: ['question', 'context'],
    schema: z.looseObject({ question: z.string(), context: z.string(), answers: answersSchema.nullish() }),
    read: (row: { question: string; context: string; answers?: AnswersField }) => ({
      kind: 'question',
      question: row.question,
      context: row.context,
      answers: toAnswers(row.answers, row.context),
    }),
  },
  image: {
    columns: ['image'],
    schema: z.looseObject({ image: z.unknown(), label: labelSchema.nullish() }),
    read: (row: { image: unknown; label?: LabelField }) => ({
      kind: 'image',
      image: row.image,
      label: toLabel(row.label),
    }),
  },
  tokens: { columns: ['ids'], schema: tokensSchema, read: tokensContent },
};

/** Every column that a format reads: what `data.columns` may rename a column to. */
export const columnNames: readonly string[] = [
  ...new Set([
    ...Object.values(formats).flatMap(({ columns, schema }) => [
      ...columns,
      ...Object.keys((schema as Partial<z.ZodObject>).shape ?? {}),
    ]),
    ...commonColumns,
  ]),
];
