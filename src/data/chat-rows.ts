import { z } from 'zod';
import { nearest } from '../base/index.ts';
import { parseJsonExactly } from './exact-json.ts';
import type { Example, ExampleContent, Message } from './example.ts';

type Chat = Extract<ExampleContent, { kind: 'chat' }>;
type Row = Readonly<Record<string, unknown>>;

const contentSchema = z.union([
  z.string(),
  z.array(z.looseObject({ type: z.literal('text'), text: z.string() })),
  z.null(),
]);
/** Whether a turn of the assistant is learned: OpenAI's and Mistral's `weight`, axolotl's `train`, ms-swift's `loss`. */
export const learnedFields = ['weight', 'train', 'loss'] as const;
const learnedSchema = z
  .unknown()
  .refine(
    (value) => value === null || value === undefined || typeof value === 'boolean' || value === 0 || value === 1,
    {
      error: 'expected 0 or 1: a turn is learned or it is not',
    },
  )
  .optional();
const turnFields = Object.fromEntries(learnedFields.map((field) => [field, learnedSchema]));

export const messageSchema = z.looseObject({ role: z.string(), content: contentSchema.optional(), ...turnFields });
type MessageRow = z.infer<typeof messageSchema>;
const textContent = (content: NonNullable<z.infer<typeof contentSchema>>): string =>
  typeof content === 'string' ? content : content.map(({ text }) => text).join('');

const present = (fields: Row): Row => Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== null));
/** A call of a tool without its fields that are null; its arguments are what the model writes, and stay. */
function withoutNulls(call: unknown): unknown {
  if (typeof call !== 'object' || call === null) return call;
  const fields = present(call as Row);
  return typeof fields.function === 'object' ? { ...fields, function: present(fields.function as Row) } : fields;
}

/** Messages whose content is one string each, without fields that are null, their content too. */
export const toMessages = (messages: readonly MessageRow[]): Message[] =>
  messages.map(({ role, content, ...fields }) => ({
    role,
    ...(content !== null && content !== undefined && { content: textContent(content) }),
    ...present(fields),
    ...(Array.isArray(fields.tool_calls) && { tool_calls: fields.tool_calls.map(withoutNulls) }),
  }));

/**
 * A list, or such a list as a string of JSON, as Parquet and CSV files often have it; empty strings stand for none. Its entries,
 * too, may be strings of JSON.
 */
const jsonList = z
  .union([z.array(z.unknown()), z.string()])
  .nullish()
  .transform((value, context) => {
    const list = typeof value !== 'string' ? value : value.trim() === '' ? null : parsed(value);
    if (list === null || (list === undefined && value === undefined)) return undefined;
    const entries = Array.isArray(list) ? list.map((entry) => (typeof entry === 'string' ? parsed(entry) : entry)) : [];
    if (Array.isArray(list) && !entries.includes(undefined)) return entries as unknown[];
    context.addIssue('expected a list, or a list as JSON');
    return z.NEVER;
  });

function parsed(text: string): unknown {
  try {
    return parseJsonExactly(text);
  } catch {
    return undefined;
  }
}

/** Columns that every format of conversations may have beside its own. */
const sharedFields = {
  system: z.string().nullish(),
  tools: jsonList,
  functions: jsonList,
  documents: jsonList,
  chat_template_kwargs: z.record(z.string(), z.unknown()).nullish(),
};
const sharedSchema = z.looseObject(sharedFields);
type SharedFields = z.infer<typeof sharedSchema>;
const sharedColumns = Object.keys(sharedFields);
/** Columns that other parts of Graft read; `task` only where it is a number, that of a prompt's task. */
export const commonColumns = ['id', 'task'];
const isCommon = (name: string, value: unknown) =>
  commonColumns.includes(name) && (name !== 'task' || Number.isInteger(value));

/** A function as a tool, unless it is one. */
const asTool = (entry: unknown): unknown =>
  typeof entry === 'object' && entry !== null && 'name' in entry && !('function' in entry)
    ? { type: 'function', function: entry }
    : entry;

/** Roles that chat templates know. */
export const knownRoles = 'system developer user assistant tool function ipython observation tool_response'.split(' ');

const unusedColumn = (name: string) => `the column '${name}' is not used`;
const isGiven = (value: unknown) =>
  value !== null && value !== undefined && value !== '' && !(Array.isArray(value) && value.length === 0);
/** The columns of a row that are neither in `used` nor read by other parts of Graft. */
export const unusedColumns = (row: Row, used: readonly string[]) =>
  Object.keys(row)
    .filter((name) => !used.includes(name) && !isCommon(name, row[name]) && isGiven(row[name]))
    .map(unusedColumn);

/**
 * The example of a conversation.
 * @param columns of the row's format
 * @param from index of the first message to learn
 */
function conversation(
  row: Row & SharedFields,
  columns: readonly string[],
  rows: readonly MessageRow[],
  from = 0,
): Chat & Pick<Example, 'unused'> {
  const given = toMessages(rows);
  const addsSystem = Boolean(row.system) && given[0]?.role !== 'system';
  const all = addsSystem ? [{ role: 'system', content: row.system! }, ...given] : given;
  const tools = row.tools ?? row.functions?.map(asTool);
  const notLearned = all.flatMap((message, i) =>
    learnedFields.some((field) => message[field] === 0 || message[field] === false) ? [i] : [],
  );
  const unused = unusedColumns(row, [...columns, ...sharedColumns]);
  if (row.system && !addsSystem && given[0]?.content !== row.system) unused.push(unusedColumn('system'));
  if (row.tools && row.functions) unused.push(unusedColumn('functions'));
  const roles = new Set(all.map(({ role }) => role).filter((role) => !knownRoles.includes(role)));
  unused.push(
    ...[...roles].map((role) => `turns of the role '${role}' are not learned, only those of 'assistant' are`),
  );
  return {
    kind: 'chat',
    messages: all.map((message) =>
      Object.fromEntries(Object.entries(message).filter(([name]) => !learnedFields.includes(name as 'weight'))),
    ) as unknown as Message[],
    ...(tools && { tools }),
    ...(row.documents && { documents: row.documents }),
    ...(row.chat_template_kwargs && { variables: row.chat_template_kwargs }),
    from: from === 0 ? 0 : from + Number(addsSystem),
    ...(notLearned.length > 0 && { notLearned }),
    ...(unused.length > 0 && { unused }),
  };
}

const turnSchema = z.looseObject({ from: z.string(), value: z.string().nullable(), ...turnFields });
type Turn = z.infer<typeof turnSchema>;

/** Chat roles by ShareGPT's names for them. `function_call` is an assistant's turn that is a call as JSON. */
const speakers: Readonly<Record<string, string>> = {
  human: 'user',
  user: 'user',
  gpt: 'assistant',
  assistant: 'assistant',
  model: 'assistant',
  chatgpt: 'assistant',
  bot: 'assistant',
  chatbot: 'assistant',
  bing: 'assistant',
  bard: 'assistant',
  system: 'system',
  developer: 'developer',
  tool: 'tool',
  observation: 'tool',
  function_response: 'tool',
  tool_response: 'tool',
  function_call: 'function_call',
  tool_call: 'function_call',
};

const callSchema = z.looseObject({ name: z.string(), arguments: z.unknown() });
/** The calls of a turn of the speaker `function_call`: an object of name and arguments as JSON, or a list of these. */
function callsOf(value: string): unknown[] | undefined {
  const json = parsed(value);
  const calls = z
    .array(callSchema)
    .min(1)
    .safeParse(Array.isArray(json) ? json : [json]);
  return calls.data?.map((call) => ({ type: 'function', function: call }));
}

const conversationsSchema = z.array(z.union([turnSchema, messageSchema]));
/** Turns as messages; a turn with `role` and `content` is one. Unknown speakers and unreadable calls are issues of the row. */
const turnsSchema = conversationsSchema.transform((turns, context) =>
  turns.map((turn, i): MessageRow => {
    if (typeof turn.from !== 'string') return turn as MessageRow;
    const { from, value, ...fields } = turn as Turn;
    const role = speakers[from.toLowerCase()];
    if (role === undefined) {
      const near = nearest(from.toLowerCase(), Object.keys(speakers));
      const known = Object.keys(speakers).join(', ');
      const message = `unknown speaker '${from}'${near ? ` (did you mean '${near}'?)` : ''}; known are ${known}`;
      context.addIssue({ code: 'custom', path: [i, 'from'], message });
    }
    if (role !== 'function_call') return { ...fields, role: role ?? from, content: value };
    const calls = callsOf(value ?? '');
    if (!calls) {
      const message = `expected a call of a function as JSON, {"name": …, "arguments": …}, from '${from}'`;
      context.addIssue({ code: 'custom', path: [i, 'value'], message });
    }
    return { ...fields, role: 'assistant', content: '', tool_calls: calls };
  }),
);

const withShared = <T extends z.ZodRawShape>(fields: T) => z.looseObject({ ...sharedFields, ...fields });

export const messagesSchema = withShared({ messages: z.array(messageSchema) });
export const messagesContent = (row: z.infer<typeof messagesSchema>) => conversation(row, ['messages'], row.messages);

export const shareGptSchema = withShared({ conversations: turnsSchema });
export function shareGptContent(row: z.infer<typeof shareGptSchema>) {
  return conversation({ ...row, tools: row.tools?.map(asTool) }, ['conversations'], row.conversations);
}

export const promptCompletionSchema = z.union([
  z.looseObject({ prompt: z.string(), completion: z.string().nullish() }),
  withShared({ prompt: z.array(messageSchema).min(1), completion: z.array(messageSchema).min(1).nullish() }),
]);
const promptColumns = ['prompt', 'completion'];
export function promptCompletionContent(
  row: z.infer<typeof promptCompletionSchema>,
): ExampleContent & Pick<Example, 'unused'> {
  if (typeof row.prompt !== 'string') {
    const { prompt, completion } = row as { prompt: MessageRow[]; completion?: MessageRow[] | null };
    return conversation(row as Row & SharedFields, promptColumns, [...prompt, ...(completion ?? [])], prompt.length);
  }
  const unused = unusedColumns(row, promptColumns);
  return {
    kind: 'completion',
    prompt: row.prompt,
    completion: (row.completion as string | null | undefined) ?? undefined,
    ...(unused.length > 0 && { unused }),
  };
}

export const alpacaSchema = withShared({
  instruction: z.string(),
  input: z.string().nullish(),
  output: z.string().nullish(),
  history: z.array(z.tuple([z.string(), z.string()])).nullish(),
});
/** LLaMA-Factory's `history` is the earlier turns: pairs of a question and its answer, which is learned too. */
export function alpacaContent(row: z.infer<typeof alpacaSchema>) {
  const question = row.input ? `${row.instruction}\n\n${row.input}` : row.instruction;
  const pairs: (readonly [string, string | undefined])[] = [
    ...(row.history ?? []),
    [question, row.output ?? undefined],
  ];
  const messages = pairs.flatMap(([content, answer]) => [
    { role: 'user', content },
    ...(answer === undefined ? [] : [{ role: 'assistant', content: answer }]),
  ]);
  const columns = ['instruction', 'input', 'output', 'history'];
  return conversation({ ...row, tools: row.tools?.map(asTool) }, columns, messages);
}
