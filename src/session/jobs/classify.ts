import { GraftError } from '../../base/index.ts';
import { answerIds, ChatTemplate, type Example, makePrompt, promptSourceOf } from '../../data/index.ts';
import { requireLanguageModel, scoreChoices } from '../../generate/index.ts';
import { labelOf, type Metric, wilson } from '../../tasks/index.ts';
import type { JobContext } from '../job-context.ts';
import { type Identity, identityOf } from './identity.ts';
import { openRows, type Progress, type RowsArgs } from './rows.ts';

/** The likeliest of several answers to one row. */
export interface Classification extends Identity {
  /** The likeliest label. */
  readonly label: string;
  /** By label; they add up to 1. */
  readonly probabilities: Readonly<Record<string, number>>;
}

/** The result of choosing among answers. */
export interface ClassifyResult {
  /** In the order of the rows. */
  readonly classifications: readonly Classification[];
  /** How often the likeliest label is the row's own answer; null where a row has none. */
  readonly accuracy: Metric | null;
  /** Whether the likeliest label is the row's own answer, for each row; absent where a row has none. */
  readonly hits?: readonly boolean[];
  /** Prompts that were longer than the model reads, and lost their middle. */
  readonly shortenedPrompts: number;
  /** What of the rows is shortened or not read, in a sentence each. */
  readonly notes: readonly string[];
}

export type ClassifyArgs = RowsArgs & { readonly labels: readonly string[] };

/** Chooses the likeliest of some answers for each row, with a language model. */
export async function classify(args: ClassifyArgs, context: JobContext<Progress>): Promise<ClassifyResult> {
  const opened = await openRows(args, context);
  const result = classifyRows(opened, args.labels, context);
  return { ...result, notes: [...opened.notes, ...result.notes] };
}

type OpenedRows = Pick<
  Awaited<ReturnType<typeof openRows>>,
  'args' | 'resident' | 'model' | 'records' | 'examples' | 'maxLength'
>;

export function classifyRows(
  { args, resident, model, records, examples, maxLength }: OpenedRows,
  labels: readonly string[],
  context: JobContext<Progress>,
): ClassifyResult {
  requireLanguageModel(model.task.name);
  if (examples.length === 0) throw new GraftError('usage', 'there are no rows', { place: 'rows' });
  if (new Set(labels.map((label) => label.trim())).size < Math.max(2, labels.length)) {
    throw new GraftError('usage', 'give at least two different labels', { place: 'labels' });
  }
  const { tokenizer } = resident;
  const chat = ChatTemplate.of(tokenizer);
  const { spaceOf, notes: spaceNotes } = spacesBefore(examples, labels);
  const prompts = examples.map(({ example, place }) => {
    const source = promptSourceOf(example);
    if (!source) {
      throw new GraftError('input', 'labels need rows that ask for an answer: messages or a prompt', {
        place,
        hint: 'Say with columns (--columns) which column is the prompt: prompt=text',
      });
    }
    const hint = 'Use rows of prompt and completion, or a model with a chat template';
    const options = { tokenizer, chat, place, hint };
    const choices = labels.map((label) => [...answerIds(source, spaceOf(example, label) + label.trim(), options)]);
    const room = maxLength - Math.max(...choices.map(({ length }) => length));
    return { ...makePrompt(source, { ...options, maxLength: room }), choices };
  });
  const answers = examples.map(({ example, place }) => {
    const answer = labelOf(example);
    if (answer === undefined) return undefined;
    const index = labels.findIndex((label) => label.trim() === answer);
    if (index >= 0) return index;
    const problem = `the answer '${String(answer).slice(0, 40)}' is not one of the labels ${labels.join(', ')}`;
    throw new GraftError('input', problem, { place, hint: 'List every answer of the rows as a label' });
  });
  const scores = scoreChoices(
    model,
    prompts.map(({ ids }) => [...ids]),
    prompts.map(({ choices }) => choices),
    examples.map(({ example }) => example.task),
    (done, total) => {
      context.throwIfStopped();
      context.emit({ type: 'progress', done, total });
    },
  );
  const chosen = scores.map((row) => row.indexOf(Math.max(...row)));
  const classifications = scores.map((row, i): Classification => {
    const top = row[chosen[i]!]!;
    const weights = row.map((score) => Math.exp(score - top));
    const sum = weights.reduce((a, b) => a + b);
    const probabilities = Object.fromEntries(labels.map((label, c) => [label, weights[c]! / sum]));
    return {
      ...identityOf(records[i]!, examples[i]!.example, args.ownFields),
      label: labels[chosen[i]!]!,
      probabilities,
    };
  });
  const complete = answers.every((answer) => answer !== undefined);
  const hits = complete ? chosen.map((label, i) => label === answers[i]) : undefined;
  const shortenedPrompts = prompts.filter(({ cutTokens }) => cutTokens > 0).length;
  return {
    classifications,
    ...(hits && { hits }),
    accuracy: hits
      ? { name: 'accuracy', ...wilson(hits.filter(Boolean).length, hits.length), count: hits.length, of: 'rows' }
      : null,
    shortenedPrompts,
    notes: [
      ...spaceNotes,
      ...(shortenedPrompts > 0
        ? [`labels: ${shortenedPrompts} prompts were longer than the model reads or max_length; their middle was cut`]
        : []),
    ],
  };
}

/**
 * The white space before an answer, which is part of how a label follows its prompt: the same in all completions, in a
 * conversation that of its own answer, and where no row has a completion that of the labels as they are written.
 * @throws GraftError 'input' where completions differ in it, since labels cannot be written in both ways
 */
function spacesBefore(
  examples: OpenedRows['examples'],
  labels: readonly string[],
): { spaceOf: (example: Example, label: string) => string; notes: string[] } {
  const spaceIn = (text: string) => /^\s*/.exec(text)![0];
  const completions = examples.flatMap(({ example, place }) =>
    example.kind === 'completion' ? [{ example, place }] : [],
  );
  const answered = completions.flatMap(({ example: { completion }, place }) =>
    completion === undefined ? [] : [{ space: spaceIn(completion), place }],
  );
  const [first] = answered;
  const other = answered.find(({ space }) => space !== first!.space);
  if (other) {
    throw new GraftError(
      'input',
      `the completion begins with ${JSON.stringify(other.space)}, and that of ${first!.place} with ${JSON.stringify(first!.space)}`,
      { place: other.place, hint: 'Write the white space before the answer in the same way in all rows' },
    );
  }
  const isGuessed = !first && completions.some(({ example: { prompt } }) => !/\s$/.test(prompt));
  const notes =
    isGuessed && labels.some((label) => spaceIn(label) === '')
      ? [
          'labels: no row has a completion, so each label follows its prompt as it is written, without a space: write " yes" with the space that completions begin with',
        ]
      : [];
  const spaceOf = (example: Example, label: string) => {
    if (example.kind === 'completion') return first?.space ?? spaceIn(label);
    const last = example.kind === 'chat' ? example.messages.at(-1)! : undefined;
    return last?.role === 'assistant' ? spaceIn(last.content ?? '') : '';
  };
  return { spaceOf, notes };
}
