import { z } from 'zod';
import { GraftError, nearest } from '../base/index.ts';
import type { RawRecord } from './readers.ts';

export interface Message {
  readonly role: string;
  readonly content: string;
  readonly [more: string]: unknown;
}

/** A row, whatever its file looked like. */
export type Example =
  | {
      readonly kind: 'chat';
      readonly messages: readonly Message[];
      readonly tools?: readonly unknown[] | undefined /** Turns before this one are only read. */;
      readonly from: number;
    }
  | { readonly kind: 'completion'; readonly prompt: string; readonly completion: string }
  | { readonly kind: 'text'; readonly text: string }
  | { readonly kind: 'tokens'; readonly ids: readonly number[]; readonly labels: readonly number[] | undefined };

export type Format = 'messages' | 'sharegpt' | 'prompt-completion' | 'alpaca' | 'text' | 'tokens';

const part = z.union([z.string(), z.array(z.looseObject({ type: z.literal('text'), text: z.string() })), z.null()]);
const message = z.looseObject({ role: z.string(), content: part.default('') });
const turn = z.looseObject({ from: z.string(), value: z.string() });
const ids = z.array(z.int());
const plainContent = (content: z.infer<typeof part>): string =>
  typeof content === 'string' ? content : (content ?? []).map(({ text }) => text).join('');
const plain = (messages: z.infer<typeof message>[]): Message[] =>
  messages.map((m) => ({ ...m, content: plainContent(m.content) }));

interface Asked {
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

/** Each format: the fields that tell it, and how its record becomes an example. */
const formats: Readonly<
  Record<Format, { fields: readonly string[]; read: (value: never) => Example; schema: z.ZodType }>
> = {
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
    read: (v: { prompt: string; completion: string } | Asked) =>
      typeof v.prompt === 'string'
        ? { kind: 'completion', prompt: v.prompt, completion: v.completion as string }
        : {
            kind: 'chat',
            messages: plain([...v.prompt, ...(v as Asked).completion]),
            tools: (v as Asked).tools ?? undefined,
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
    schema: z.looseObject({ text: z.string().min(1) }),
    read: (v: { text: string }) => ({ kind: 'text', text: v.text }),
  },
  tokens: {
    fields: ['ids'],
    schema: z.looseObject({ ids, labels: ids.nullish() }),
    read: (v: { ids: number[]; labels?: number[] | null }) => ({
      kind: 'tokens',
      ids: v.ids,
      labels: v.labels ?? undefined,
    }),
  },
};

/** The format that a record's fields tell. */
function formatOf({ value, place }: RawRecord): Format {
  const keys = Object.keys(value);
  const fits = (Object.keys(formats) as Format[]).filter((name) =>
    formats[name].fields.every((field) => keys.includes(field)),
  );
  if (fits.length === 1) return fits[0]!;
  if (fits.length > 1) {
    throw new GraftError('input', `the row could be ${fits.join(' or ')}`, {
      place,
      mend: 'Name the format in the recipe (data.format)',
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
      mend: `Known are ${forms.join(', ')}`,
    },
  );
}

/** A record as an example. @throws GraftError 'input' with its place when a field is missing or of the wrong type */
export function toExample(record: RawRecord, format: Format | 'auto'): Example {
  const name = format === 'auto' ? formatOf(record) : format;
  const parsed = formats[name].schema.safeParse(record.value);
  if (!parsed.success) throw mistake(name, record, deepest(parsed.error.issues));
  return formats[name].read(parsed.data as never);
}

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
    { place, ...(near && { mend: `Is '${near}' meant for '${field}'?` }) },
  );
}

/** The file of explicit optimizer steps: `{"rows": [{"ids": […], "labels": […]}]}`, one step a line. */
export function toStep({ value, place }: RawRecord): { example: Example; place: string }[] {
  const parsed = z
    .looseObject({ rows: z.array(z.looseObject({ ids, labels: ids.nullish() })).min(1) })
    .safeParse(value);
  if (!parsed.success) {
    const [first] = parsed.error.issues;
    throw new GraftError('input', `as batches, ${first!.path.map(String).join('.') || 'the line'}: ${first!.message}`, {
      place,
    });
  }
  return parsed.data.rows.map((row, i) => ({
    example: { kind: 'tokens', ids: row.ids, labels: row.labels ?? undefined },
    place: `${place} row ${i}`,
  }));
}
