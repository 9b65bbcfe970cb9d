import { z } from 'zod';
import { GraftError, nearest } from '../base/index.ts';
import type { RawRecord } from './record.ts';

export interface Message {
  readonly role: string;
  readonly content: string;
  readonly [more: string]: unknown;
}

/** A class by name or number, a number to be predicted, or several classes. */
export type Label = string | number | readonly (string | number)[];

/** Where an answer stands in its context, in UTF-16 units. */
export interface Answer {
  readonly text: string;
  readonly start: number;
}

/** A row, whatever its file looked like. What is undefined in it is to be predicted. */
export type Example = Content & {
  /** Which of several tasks it is of, from 0. */
  readonly task?: number;
};

type Content =
  | {
      readonly kind: 'chat';
      readonly messages: readonly Message[];
      readonly tools?: readonly unknown[] | undefined /** Turns before this one are only read. */;
      readonly from: number;
    }
  | { readonly kind: 'completion'; readonly prompt: string; readonly completion: string }
  | { readonly kind: 'text'; readonly text: string }
  | {
      readonly kind: 'labelled';
      readonly text: string;
      readonly pair: string | undefined;
      readonly label: Label | undefined;
    }
  | { readonly kind: 'tags'; readonly words: readonly string[]; readonly tags: readonly string[] | undefined }
  | {
      readonly kind: 'question';
      readonly question: string;
      readonly context: string;
      /** None: it cannot be answered from the context. */
      readonly answers: readonly Answer[] | undefined;
    }
  | { readonly kind: 'image'; readonly image: unknown; readonly label: Label | undefined }
  | {
      readonly kind: 'tokens';
      readonly ids: readonly number[];
      /** One a token, one of the row, or as its task has them. */
      readonly labels: readonly number[] | number | undefined;
      readonly types?: readonly number[];
      /** Of the second text of a pair. */
      readonly pairIds?: readonly number[];
    };

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

export type Format = (typeof formatNames)[number];

const part = z.union([z.string(), z.array(z.looseObject({ type: z.literal('text'), text: z.string() })), z.null()]);
const message = z.looseObject({ role: z.string(), content: part.default('') });
const turn = z.looseObject({ from: z.string(), value: z.string() });
const ids = z.array(z.int());
const label = z.union([z.string(), z.number(), z.boolean(), z.array(z.union([z.string(), z.number()]))]);
const labelOf = (value: z.infer<typeof label> | null | undefined): Label | undefined =>
  typeof value === 'boolean' ? String(value) : value === null || value === '' ? undefined : value;
const tokensRow = z.looseObject({
  ids,
  labels: z.union([z.number(), z.array(z.number())]).nullish(),
  types: ids.nullish(),
  pair_ids: ids.nullish(),
});
const tokensExample = (v: z.infer<typeof tokensRow>): Content => ({
  kind: 'tokens',
  ids: v.ids,
  labels: v.labels ?? undefined,
  ...(v.types && { types: v.types }),
  ...(v.pair_ids && { pairIds: v.pair_ids }),
});
const answer = z.looseObject({ text: z.string(), answer_start: z.int().nonnegative() });
/** SQuAD's own form has lists side by side; others list the answers. */
const answers = z.union([
  z.array(answer),
  z.looseObject({ text: z.array(z.string()), answer_start: z.array(z.int().nonnegative()) }),
]);

/** SQuAD counts characters by code point. */
function utf16(text: string, codePoints: number): number {
  let at = 0;
  for (let n = 0; n < codePoints && at < text.length; n++) at += text.codePointAt(at)! > 0xffff ? 2 : 1;
  return at;
}

function answersOf(value: z.infer<typeof answers> | null | undefined, context: string): Answer[] | undefined {
  if (!value) return undefined;
  const list = Array.isArray(value)
    ? value.map(({ text, answer_start: at }) => ({ text, at }))
    : value.text.map((text, i) => ({ text, at: value.answer_start[i] ?? 0 }));
  return list.map(({ text, at }) => ({ text, start: utf16(context, at) }));
}
const plainContent = (content: z.infer<typeof part>): string =>
  typeof content === 'string' ? content : (content ?? []).map(({ text }) => text).join('');
const plain = (messages: z.infer<typeof message>[]): Message[] =>
  messages.map((m) => ({ ...m, content: plainContent(m.content) }));

interface PromptAndCompletion {
  prompt: z.infer<typeof message>[];
  completion: z.infer<typeof message>[];
  tools?: unknown[] | null;
}

const speakers: Readonly<Record<string, string>> = {
  human: 'user',
  user: 'user',
  gpt: 'assistant',
  assistant: 'assistant',
  system: 'system',
  tool: 'tool',
};

interface FormatEntry {
  /** The fields that tell it, and fields that tell another. */
  readonly fields: readonly string[];
  readonly without?: readonly string[];
  readonly schema: z.ZodType;
  readonly read: (value: never) => Content;
}

/** Each format, and how its record becomes an example. */
const formats: Readonly<Record<Format, FormatEntry>> = {
  messages: {
    fields: ['messages'],
    schema: z.looseObject({ messages: z.array(message).min(1), tools: z.array(z.unknown()).nullish() }),
    read: (v: { messages: z.infer<typeof message>[]; tools?: unknown[] | null }) => ({
      kind: 'chat',
      messages: plain(v.messages),
      tools: v.tools ?? undefined,
      from: 0,
    }),
  },
  sharegpt: {
    fields: ['conversations'],
    schema: z.looseObject({ conversations: z.array(turn).min(1), system: z.string().nullish() }),
    read: (v: { conversations: z.infer<typeof turn>[]; system?: string | null }) => ({
      kind: 'chat',
      messages: [
        ...(v.system ? [{ role: 'system', content: v.system }] : []),
        ...v.conversations.map(({ from, value }) => ({ role: speakers[from] ?? from, content: value })),
      ],
      from: 0,
    }),
  },
  'prompt-completion': {
    fields: ['prompt', 'completion'],
    schema: z.union([
      z.looseObject({ prompt: z.string(), completion: z.string() }),
      z.looseObject({
        prompt: z.array(message).min(1),
        completion: z.array(message).min(1),
        tools: z.array(z.unknown()).nullish(),
      }),
    ]),
    read: (v: { prompt: string; completion: string } | PromptAndCompletion) =>
      typeof v.prompt === 'string'
        ? { kind: 'completion', prompt: v.prompt, completion: v.completion as string }
        : {
            kind: 'chat',
            messages: plain([...v.prompt, ...(v as PromptAndCompletion).completion]),
            tools: (v as PromptAndCompletion).tools ?? undefined,
            from: v.prompt.length,
          },
  },
  alpaca: {
    fields: ['instruction', 'output'],
    schema: z.looseObject({
      instruction: z.string(),
      input: z.string().nullish(),
      output: z.string(),
      system: z.string().nullish(),
    }),
    read: (v: { instruction: string; input?: string | null; output: string; system?: string | null }) => ({
      kind: 'chat',
      messages: [
        ...(v.system ? [{ role: 'system', content: v.system }] : []),
        { role: 'user', content: v.input ? `${v.instruction}\n\n${v.input}` : v.instruction },
        { role: 'assistant', content: v.output },
      ],
      from: 0,
    }),
  },
  text: {
    fields: ['text'],
    without: ['label', 'text_pair'],
    schema: z.looseObject({ text: z.string().min(1) }),
    read: (v: { text: string }) => ({ kind: 'text', text: v.text }),
  },
  labelled: {
    fields: ['text', 'label'],
    schema: z.looseObject({ text: z.string(), text_pair: z.string().nullish(), label: label.nullish() }),
    read: (v: { text: string; text_pair?: string | null; label?: z.infer<typeof label> | null }) => ({
      kind: 'labelled',
      text: v.text,
      pair: v.text_pair ?? undefined,
      label: labelOf(v.label),
    }),
  },
  pairs: {
    fields: ['text', 'text_pair'],
    without: ['label'],
    schema: z.looseObject({ text: z.string(), text_pair: z.string() }),
    read: (v: { text: string; text_pair: string }) => ({
      kind: 'labelled',
      text: v.text,
      pair: v.text_pair,
      label: undefined,
    }),
  },
  tags: {
    fields: ['tokens'],
    schema: z.looseObject({ tokens: z.array(z.string()).min(1), tags: z.array(z.string()).nullish() }),
    read: (v: { tokens: string[]; tags?: string[] | null }) => ({
      kind: 'tags',
      words: v.tokens,
      tags: v.tags ?? undefined,
    }),
  },
  question: {
    fields: ['question', 'context'],
    schema: z.looseObject({ question: z.string(), context: z.string().min(1), answers: answers.nullish() }),
    read: (v: { question: string; context: string; answers?: z.infer<typeof answers> | null }) => ({
      kind: 'question',
      question: v.question,
      context: v.context,
      answers: answersOf(v.answers, v.context),
    }),
  },
  image: {
    fields: ['image'],
    schema: z.looseObject({ image: z.unknown(), label: label.nullish() }),
    read: (v: { image: unknown; label?: z.infer<typeof label> | null }) => ({
      kind: 'image',
      image: v.image,
      label: labelOf(v.label),
    }),
  },
  tokens: { fields: ['ids'], schema: tokensRow, read: tokensExample },
};

/** The format that a record's fields tell. */
function formatOf({ value, place }: RawRecord): Format {
  const keys = Object.keys(value);
  const fits = (Object.keys(formats) as Format[]).filter((name) => {
    const { fields, without = [] } = formats[name];
    return fields.every((field) => keys.includes(field)) && !without.some((field) => keys.includes(field));
  });
  if (fits.length === 1) return fits[0]!;
  if (fits.length > 1) {
    throw new GraftError('input', `the row could be ${fits.join(' or ')}`, {
      place,
      hint: 'Name the format in the recipe (data.format)',
    });
  }
  const known = Object.values(formats).flatMap(({ fields }) => fields);
  const near = keys.flatMap((key) => {
    const word = nearest(key, known);
    return word && word !== key ? [`'${key}' for '${word}'?`] : [];
  });
  const forms = Object.entries(formats).map(([name, { fields }]) => `${name} (${fields.join(', ')})`);
  throw new GraftError(
    'input',
    `the fields ${keys.map((k) => `'${k}'`).join(', ') || '(none)'} tell no known format${near.length > 0 ? `; is ${near.join(' ')}` : ''}`,
    {
      place,
      hint: `Known are ${forms.join(', ')}`,
    },
  );
}

/** A record as an example. @throws GraftError 'input' with its place when a field is missing or of the wrong type */
export function toExample(record: RawRecord, format: Format | 'auto'): Example {
  const name = format === 'auto' ? formatOf(record) : format;
  const parsed = formats[name].schema.safeParse(record.value);
  if (!parsed.success) throw mistake(name, record, deepest(parsed.error.issues));
  return withTask(formats[name].read(parsed.data as never), record.value);
}

/** The example as one of this task, where it does not say its own. */
export const withTaskNumber = (example: Example, task: number | undefined): Example =>
  task === undefined || example.task !== undefined ? example : { ...example, task };

const withTask = (content: Content, { task }: Readonly<Record<string, unknown>>): Example =>
  Number.isInteger(task) ? { ...content, task: task as number } : content;

/** Of the ways in which a value fits no form of a union, the one that came farthest. */
function deepest(issues: readonly z.core.$ZodIssue[]): z.core.$ZodIssue {
  const [first] = issues;
  if (first!.code !== 'invalid_union') return first!;
  const inner = first!.errors.map((list) => deepest(list)).sort((a, b) => b.path.length - a.path.length);
  return inner[0] ? { ...inner[0], path: [...first!.path, ...inner[0].path] } : first!;
}

function mistake(name: Format, { value, place }: RawRecord, { path, message: problem }: z.core.$ZodIssue): GraftError {
  const [field] = path.map(String);
  // A field that is not there may stand there misspelt.
  const near = field && !(field in value) ? nearest(field, Object.keys(value)) : undefined;
  return new GraftError(
    'input',
    `as ${name}, ${path.map(String).join('.') || 'the row'}: ${problem.replace(/^Invalid input: /, '')}`,
    { place, ...(near && { hint: `Is '${near}' meant for '${field}'?` }) },
  );
}

/** The file of explicit optimizer steps: `{"rows": [{"ids": […], "labels": […]}]}`, one step a line. */
export function toStep({ value, place }: RawRecord): { example: Example; place: string }[] {
  const parsed = z.looseObject({ rows: z.array(tokensRow).min(1) }).safeParse(value);
  if (!parsed.success) {
    const [first] = parsed.error.issues;
    throw new GraftError('input', `as batches, ${first!.path.map(String).join('.') || 'the line'}: ${first!.message}`, {
      place,
    });
  }
  return parsed.data.rows.map((row, i) => ({ example: withTask(tokensExample(row), row), place: `${place} row ${i}` }));
}
