import { GraftError } from '../base/index.ts';
import { BadRows } from './bad-rows.ts';
import { answerIds, type ChatTemplate, makePrompt, requireChatTemplate } from './chat/index.ts';
import { knownRoles } from './chat-rows.ts';
import type { Example } from './example.ts';
import { ReportBuilder, type RowReport } from './row-report.ts';
import { requireTokenizer, type Tokenizer } from './tokenizer/index.ts';
import { keptTokens, type Truncation } from './truncate.ts';

/** One row of tokens for training or measuring. */
export interface Row {
  /** The token ids. */
  readonly ids: Int32Array;
  /** Language modelling: the token at i where it is learned; tags: its class; −100 where none is learned. Empty: no labels. */
  readonly labels: Int32Array;
  /** The file and line that the row comes from. */
  readonly place: string;
  /** Token types (BERT's segments); all 0 where absent. */
  readonly types?: Int32Array;
  /** The label of the row: a class, a number, a 0 or 1 for each class, or the first and last token of an answer. */
  readonly target?: readonly number[];
  /** The image [channels, height, width] that the model reads instead of the ids, which then only count its tokens. */
  readonly pixels?: () => Float32Array;
  /** The second text of a pair; packed directly after this row. */
  readonly pair?: Row;
  /** Which of several tasks that share an adapter the row belongs to. */
  readonly task?: number;
  /** The example that the row was made from; several rows of one example are its windows. */
  readonly example?: Example;
  /** Start and stop of each token in the example's context, in UTF-16 units, two numbers per token; −1 outside the context. */
  readonly spans?: Int32Array;
  /** By token: the index of its word in the example; −1 for none. */
  readonly words?: Int32Array;
}

/** How examples are made into rows of tokens. */
export interface RowOptions {
  readonly tokenizer: Tokenizer | undefined;
  readonly chat: ChatTemplate | undefined;
  readonly vocabSize: number;
  /** Tokens; longer rows are truncated. */
  readonly maxLength: number;
  /** Where they are. Default: at the end; texts that are only read where the tokenizer says (truncation_side). */
  readonly truncate?: Truncation | undefined;
  /** What to learn: `completion` for the assistant's turns and completions only, `all` for every token. */
  readonly trainOn: 'completion' | 'all';
}

type Chat = Extract<Example, { kind: 'chat' }>;

/** The label of a token that is not learned, as in PyTorch's cross-entropy. */
const IGNORED = -100;

/**
 * Makes rows of tokens for language modelling.
 * @throws GraftError with the place of an example that cannot be a row; 'input' when no row is left
 */
export function toRows(
  examples: Iterable<{ example: Example; place: string }>,
  options: RowOptions,
): { rows: Row[]; report: RowReport } {
  const report = new ReportBuilder();
  const bad = new BadRows();
  const rows: Row[] = [];
  const roles = new Set<string>();
  const unused = new Set<string>();
  let first: string | undefined;
  for (const { example, place } of examples) {
    first ??= place;
    if (example.kind === 'chat') for (const { role } of example.messages) roles.add(role);
    for (const what of example.unused ?? []) unused.add(what);
    const made = isEmpty(example) ? undefined : bad.try(() => rowOf(example, place, options, report));
    if (made) rows.push(made);
    else if (made === undefined) report.empty(place); // of a bad row too, but then there is no report
  }
  bad.refuse();
  const result = report.of(rows.length);
  if (rows.length === 0) throw nothingToLearn(result, { roles, unused, maxLength: options.maxLength, place: first });
  return { rows, report: result };
}

/** Whether a text has no content. */
export const isBlank = (text: string | undefined): boolean => !text?.trim();

/** Whether an example has no content at all. */
export const isEmpty = (example: Example): boolean =>
  (example.kind === 'text' && example.text === '') ||
  (example.kind === 'labelled' && isBlank(example.text) && isBlank(example.pair)) ||
  (example.kind === 'completion' && example.prompt === '' && !example.completion) ||
  (example.kind === 'chat' && example.messages.length === 0) ||
  (example.kind === 'tags' && example.words.length === 0) ||
  (example.kind === 'question' && example.context === '') ||
  (example.kind === 'tokens' && example.ids.length === 0);

const isLearned = (labels: Int32Array) => labels.subarray(1).some((label) => label !== IGNORED);
const learnedCount = (labels: Int32Array) => labels.reduce((count, label) => count + Number(label !== IGNORED), 0);

/** The row of an example; undefined where nothing in it is learned, null where that was cut off. */
function rowOf(example: Example, place: string, options: RowOptions, report: ReportBuilder): Row | undefined | null {
  let { ids, labels, notPrinted = [] } = idsAndLabels(example, place, options);
  for (const what of notPrinted) report.notPrinted(what);
  const outsideId = ids.find((id) => id >= options.vocabSize);
  if (outsideId !== undefined) {
    throw new GraftError(
      'mismatch',
      `the tokenizer gives id ${outsideId} (${options.tokenizer?.idToToken(outsideId)}), and the model's vocabulary ends at ${options.vocabSize - 1}`,
      { place, hint: 'Use the tokenizer that belongs to the model' },
    );
  }
  const hadLabels = isLearned(labels);
  if (ids.length > options.maxLength) {
    report.cut(place, ids.length - options.maxLength);
    const before = learnedCount(labels);
    const kept = keptTokens({
      length: ids.length,
      room: options.maxLength,
      truncate: options.truncate ?? 'end',
      head: Number(ids[0] === options.tokenizer?.bosId),
      isLearned: (i) => labels[i] !== IGNORED,
    });
    [ids, labels] = [ids, labels].map((list) => Int32Array.from(kept, (i) => list[i]!)) as [Int32Array, Int32Array];
    const isAnswer = example.kind === 'chat' || example.kind === 'completion';
    if (isAnswer && isLearned(labels) && learnedCount(labels) < before) report.shortenedAnswer();
  }
  const needsEnd = example.kind === 'text' || example.kind === 'completion';
  if (needsEnd && options.tokenizer?.eosId === undefined) report.endless();
  // The first token cannot be predicted: no token comes before it.
  if (!isLearned(labels)) {
    if (!hadLabels) return undefined;
    report.lost(place);
    return null;
  }
  if (hasEmptyAnswer(example)) report.emptyAnswer(place);
  return { ids, labels, place, ...(example.task !== undefined && { task: example.task }) };
}

/** Whether a completion, or a turn of the assistant that is learned, has no content and calls nothing. */
function hasEmptyAnswer(example: Example): boolean {
  if (example.kind === 'completion') return example.completion?.trim() === '';
  if (example.kind !== 'chat') return false;
  return example.messages.some(
    ({ role, content = '', tool_calls: calls, ...more }, i) =>
      role === 'assistant' &&
      i >= example.from &&
      !example.notLearned?.includes(i) &&
      content.trim() === '' &&
      !(Array.isArray(calls) && calls.length > 0) &&
      Object.values(more).every((value) => typeof value !== 'string' || value.trim() === ''),
  );
}

function nothingToLearn(
  report: RowReport,
  {
    roles,
    unused,
    maxLength,
    place,
  }: {
    readonly roles: ReadonlySet<string>;
    readonly unused: ReadonlySet<string>;
    readonly maxLength: number;
    readonly place: string | undefined;
  },
): GraftError {
  const { emptyRows, lostRows } = report;
  const all = emptyRows + lostRows;
  const isSpoken = roles.size > 0 && !roles.has('assistant');
  const named = [...roles].map((role) => `'${role}'`).join(', ');
  // Rows that only ask may have their answer in a column with another name.
  const columns = isSpoken ? [...unused].slice(0, 8).map((what) => `; ${what}`) : [];
  return new GraftError(
    'input',
    all === 0
      ? 'there are no rows'
      : `none of the ${all} rows has a token to learn${isSpoken ? `: they are turns of ${named}, and those of 'assistant' are learned` : ''}${columns.join('')}`,
    {
      ...(place && { place }),
      hint: isSpoken
        ? `${columns.length > 0 ? 'Say with data.columns which column has the answers, as { output: response }, or call' : 'Call'} the role whose turns are learned 'assistant'; roles that are read are ${knownRoles.join(', ')}`
        : lostRows > 0
          ? `Raise max_length above ${maxLength}, or set data.truncate to middle: the answers are truncated`
          : 'Check the completions or labels of the rows',
      data: { ...report },
    },
  );
}

interface IdsAndLabels {
  readonly ids: Int32Array;
  readonly labels: Int32Array;
  /** What of a conversation its template does not print. */
  readonly notPrinted?: readonly string[];
}

function idsAndLabels(example: Example, place: string, options: RowOptions): IdsAndLabels {
  if (example.kind === 'tokens') {
    const ids = checkedIds(example.ids, options.vocabSize, place);
    return { ids, labels: checkedLabels(example.labels ?? example.ids, ids.length, options.vocabSize, place) };
  }
  const tokenizer = requireTokenizer(options.tokenizer, place);
  const trainOnAll = options.trainOn === 'all';
  switch (example.kind) {
    case 'text': {
      const ids = tokenizer.withEnd(tokenizer.encode(example.text));
      return { ids, labels: ids.slice() };
    }
    case 'completion': {
      if (example.completion === undefined) {
        const problem = ['the row has a prompt and no completion', ...(example.unused ?? [])].join('; ');
        throw new GraftError('input', problem, {
          place,
          hint: 'Add a completion, or name its column: data.columns: { completion: answer }, --columns of a command',
        });
      }
      const source = { text: example.prompt };
      const prompt = { tokenizer, chat: undefined, place, hint: '' };
      const { ids: promptIds } = makePrompt(source, prompt);
      const ids = tokenizer.withEnd(concat(promptIds, answerIds(source, example.completion, prompt)));
      return { ids, labels: ids.map((id, i) => (trainOnAll || i >= promptIds.length ? id : IGNORED)) };
    }
    case 'chat': {
      const hint = 'Use rows of prompt and completion, or a model with a chat template';
      const chat = requireChatTemplate(options.chat, place, hint);
      try {
        return chatIds(example, chat, tokenizer, trainOnAll);
      } catch (cause) {
        if (!(cause instanceof GraftError) || cause.place) throw cause;
        throw cause.at(place);
      }
    }
    default:
      throw new GraftError('usage', `causal-lm does not support rows of ${kindNames[example.kind]}`, {
        place,
        hint: "Set the recipe's task to what the rows are for, or data.format to text",
      });
  }
}

function chatIds(
  { messages, tools, documents, variables, from, notLearned = [] }: Chat,
  chat: ChatTemplate,
  tokenizer: Tokenizer,
  trainOnAll: boolean,
): IdsAndLabels {
  const more = { documents, variables };
  const left = new Set(notLearned);
  const notRead = (text: string) => notReadOf(messages, more, text, (name) => chat.names(name, tools));
  if (trainOnAll && left.size === 0) {
    const text = chat.render(messages, { ...more, tools });
    const ids = tokenizer.encode(text, { addSpecialTokens: false });
    const notPrinted = [...notPrintedOf(tools, messages, text, text), ...notRead(text)];
    return { ids, labels: ids.slice(), notPrinted };
  }
  const isLearned = (i: number) => !left.has(i) && i >= from;
  const { text, spans } = chat.learned(messages, tools, trainOnAll ? (i) => left.has(i) : isLearned, more);
  const { ids, mask } = tokenizer.encodeWithMask(text, spans);
  const learnedText = trainOnAll ? text : spans.map((span) => text.slice(...span)).join('');
  return {
    ids,
    // Of a row that is learned whole, the spans are what is not.
    labels: ids.map((id, i) => (Boolean(mask[i]) !== trainOnAll ? id : IGNORED)),
    notPrinted: [
      ...notPrintedOf(
        tools,
        messages.filter((_, i) => isLearned(i)),
        text,
        learnedText,
      ),
      ...notRead(text),
    ],
  };
}

/** What the text of a conversation lacks: tools, or calls and answers of the assistant that are to be learned. */
function notPrintedOf(tools: Chat['tools'], messages: Chat['messages'], text: string, learnedText: string): string[] {
  const answers = messages.filter(({ role }) => role === 'assistant');
  const calls = answers.flatMap(({ tool_calls }) => namesOf(tool_calls));
  // A template may strip the reasoning before an answer, so its end is looked for.
  const ends = answers.map(({ content = '' }) => content.trim().slice(-8));
  return [
    ...(namesOf(tools).some((name) => !text.includes(name)) ? ['tools'] : []),
    ...(calls.some((name) => !learnedText.includes(name)) ? ['calls of functions'] : []),
    ...(ends.some((end) => !learnedText.includes(end)) ? ['answers'] : []),
  ];
}

/** Fields of messages that templates have no need of: the first two all print, the others link an answer to its call. */
const linkingFields = ['role', 'content', 'tool_calls', 'tool_call_id', 'id'];

/** Fields of messages, and what stands beside the messages, that the template does not name. */
function notReadOf(
  messages: Chat['messages'],
  { documents, variables }: Pick<Chat, 'documents' | 'variables'>,
  text: string,
  isNamed: (name: string) => boolean,
): string[] {
  const isEmpty = (value: unknown) =>
    value === undefined || value === null || value === '' || (Array.isArray(value) && value.length === 0);
  const isPrinted = (value: unknown) => typeof value === 'string' && text.includes(value);
  const fields = messages.flatMap((message) =>
    Object.entries(message).flatMap(([name, value]) => {
      const isLink = linkingFields.includes(name) || (name === 'name' && message.role === 'tool');
      return isLink || isEmpty(value) || isNamed(name) || isPrinted(value) ? [] : [name];
    }),
  );
  return [
    ...[...new Set(fields)].map((name) => `the field '${name}' of messages`),
    ...(documents?.length && !isNamed('documents') ? ['documents'] : []),
    ...Object.keys(variables ?? {})
      .filter((name) => !isNamed(name))
      .map((name) => `the variable '${name}'`),
  ];
}

/** The names of functions in a list of tools or calls. */
function namesOf(list: unknown): string[] {
  if (!Array.isArray(list)) return [];
  return list.flatMap((item) => {
    const name = item?.function?.name ?? item?.name;
    return typeof name === 'string' ? [name] : [];
  });
}

const kindNames = {
  labelled: 'labelled texts',
  tags: 'tagged words',
  question: 'questions with a context',
  image: 'images',
} as const;

function concat(a: Int32Array, b: Int32Array): Int32Array {
  const both = new Int32Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}

/** The ids of a row, checked. @throws GraftError 'input' for a row without ids, and for an id outside the vocabulary */
export function checkedIds(ids: readonly number[], vocabSize: number, place: string): Int32Array {
  if (ids.length === 0) throw new GraftError('input', 'the row has no ids', { place });
  const index = ids.findIndex((id) => isOutside(id, vocabSize));
  if (index >= 0)
    throw new GraftError('input', `ids[${index}] is ${ids[index]}, outside the vocabulary of ${vocabSize}`, { place });
  return Int32Array.from(ids);
}

/**
 * The labels of the tokens of a row, checked.
 * @param labelSet what the error calls the labels from 0 to `count` − 1
 * @throws GraftError 'input' where there is not one label for each token, or one is neither −100 nor below `count`
 */
export function checkedLabels(
  labels: readonly number[] | number,
  length: number,
  count: number,
  place: string,
  labelSet = `the vocabulary of ${count}`,
): Int32Array {
  const list = typeof labels === 'number' ? [labels] : labels;
  if (list.length !== length) {
    throw new GraftError('input', `${length} ids have ${list.length} labels`, {
      place,
      hint: 'Give one label for each id, −100 where nothing is learned',
    });
  }
  const index = list.findIndex((label) => label !== IGNORED && isOutside(label, count));
  if (index >= 0) {
    throw new GraftError('input', `labels[${index}] is ${list[index]}, outside ${labelSet}`, {
      place,
      hint: 'Use −100 where nothing is learned',
    });
  }
  return Int32Array.from(list);
}

const isOutside = (value: number, count: number) => !Number.isInteger(value) || value < 0 || value >= count;
