import { GraftError } from '../../base/index.ts';
import {
  ChatTemplate,
  type Example,
  type Format,
  makePrompt,
  promptSourceOf,
  type RowOptions,
  readRecords,
  type Tokenizer,
  toExample,
  withTaskNumber,
} from '../../data/index.ts';
import { useThreads } from '../../engine/index.ts';
import { scoreChoices } from '../../generate/index.ts';
import { resolveModel } from '../../io/index.ts';
import type { Quantize } from '../../models/index.ts';
import type { Model, TaskName } from '../../nn/index.ts';
import { batchesOf, imageTools, labelOf, type Metric, measure, taskOf, taskRows, wilson } from '../../tasks/index.ts';
import { explainedMeasurement } from '../../train/index.ts';
import { residentModel, residentTokenizerIfAny, type TaskNumberArgs, taskNumberFor } from '../resident.ts';

/** What the rows of a file are measured or predicted with. */
export interface RowsArgs extends TaskNumberArgs {
  readonly model: string;
  readonly data: string;
  /** Default: found out of each row's fields. */
  readonly format?: Format;
  /** causal-lm: what of a row is measured. Default: the answers. */
  readonly trainOn?: RowOptions['trainOn'];
  /** Default: what the adapter or the checkpoint is for. */
  readonly task?: TaskName;
  readonly maxLength?: number;
  readonly stride?: number;
  readonly quantize?: Quantize;
  readonly threads?: number;
}

export interface EvaluateArgs extends RowsArgs {
  /** causal-lm: the answers to choose among. */
  readonly labels?: readonly string[];
  /** The result holds `hits` too, where the first metric has them. */
  readonly perRow?: boolean;
}

/** Model, task and rows of a file. */
export async function rowsOfFile(args: RowsArgs, labelled: boolean) {
  useThreads(args.threads);
  const path = await resolveModel(args.model);
  const tokenizer = residentTokenizerIfAny(path);
  const chat = tokenizer && ChatTemplate.of(tokenizer);
  const model = residentModel(path, args.quantize ?? 'none', args.adapter, args.task);
  const records = await readRecords(args.data);
  const number = taskNumberFor(args);
  const examples = records.map((record) => ({
    example: withTaskNumber(toExample(record, args.format ?? 'auto'), number),
    place: record.place,
  }));
  const task = taskOf(model.task);
  const maxLength = Math.min(args.maxLength ?? 1024, model.contextLength - model.ports.virtualLength);
  const made = taskRows(task, examples, {
    tokenizer,
    chat,
    vocabSize: model.vocabSize,
    maxLength,
    trainOn: args.trainOn ?? 'completion',
    stride: args.stride ?? 128,
    labelled,
    ...(await imageTools(model, path, examples)),
  });
  const batches = batchesOf(task, made.rows, 1024, 32, model.ports.promptLength);
  const explained = <T>(act: () => T): T => {
    try {
      return act();
    } catch (error) {
      throw explainedMeasurement(error, model, args.adapter ?? path);
    }
  };
  return { model, task, tokenizer, chat, examples, maxLength, ...made, batches, explained };
}

/**
 * Loss and metrics of a task over rows. Of language modelling: perplexity, and with labels how often the row's own answer is the
 * likeliest of them.
 */
export async function evaluateJob(args: EvaluateArgs) {
  const { model, task, tokenizer, chat, examples, maxLength, rows, report, batches, explained } = await rowsOfFile(
    args,
    true,
  );
  const speaks = task.head.name === 'causal-lm';
  if (args.labels && !speaks) {
    throw new GraftError('usage', `the labels of ${task.head.name} are those of its head`, {
      place: '--labels',
      hint: 'Leave --labels out',
    });
  }
  const { loss, units, metrics, confusion, hits } = explained(() => measure(model, task, batches, rows));
  const result = {
    task: task.head.name,
    loss,
    perplexity: speaks ? Math.exp(loss) : null,
    tokens: units,
    rows: rows.length,
    report,
    metrics,
    confusion: confusion ?? null,
    ...(args.perRow && hits && { hits }),
  };
  if (!args.labels) return { ...result, accuracy: null };
  const { hits: _, ...accuracy } = choiceAccuracy(model, examples, args.labels, tokenizer!, chat, maxLength);
  return { ...result, metrics: [...metrics, asMetric(accuracy)], accuracy };
}

type Accuracy = Omit<ReturnType<typeof choiceAccuracy>, 'hits'>;

const asMetric = ({ value, low, high, rows: count }: Accuracy): Metric => {
  return { name: 'accuracy', value, low, high, count, of: 'rows' };
};

/** An accuracy, and whether each row is answered right, in the order of the rows. */
export interface RowAccuracy extends Metric {
  readonly hits: readonly boolean[];
}

/** Only how often the likeliest of the labels is the row's own answer: half the work of the whole measurement. */
export async function classifyJob(args: EvaluateArgs & { readonly labels: readonly string[] }): Promise<RowAccuracy> {
  const { model, examples, tokenizer, chat, maxLength } = await rowsOfFile(args, true);
  const accuracy = choiceAccuracy(model, examples, args.labels, tokenizer!, chat, maxLength);
  return { ...asMetric(accuracy), hits: accuracy.hits };
}

/** How often the likeliest of the labels is the row's own answer. */
function choiceAccuracy(
  model: Model,
  examples: readonly { example: Example; place: string }[],
  labels: readonly string[],
  tokenizer: Tokenizer,
  chat: ChatTemplate | undefined,
  maxLength: number,
) {
  const choices = labels.map((label) => [...tokenizer.encode(label, { addSpecialTokens: false })]);
  const room = maxLength - Math.max(...choices.map((choice) => choice.length));
  const answers = examples.map(({ example, place }) => question(example, place, labels, tokenizer, chat, room));
  const scores = scoreChoices(
    model,
    answers.map(({ prompt }) => [...prompt.ids]),
    choices,
    examples.map(({ example }) => example.task),
  );
  const shortenedPrompts = answers.filter(({ prompt }) => prompt.cutTokens > 0).length;
  const hits = scores.map((row, i) => row.indexOf(Math.max(...row)) === answers[i]!.answer);
  return { rows: answers.length, shortenedPrompts, hits, ...wilson(hits.filter(Boolean).length, hits.length) };
}

/** The tokens before the last answer, at most `maxLength`, and which label it is. */
function question(
  example: Example,
  place: string,
  labels: readonly string[],
  tokenizer: Tokenizer,
  chat: ChatTemplate | undefined,
  maxLength: number,
) {
  const source = promptSourceOf(example);
  const hint = 'Use rows of prompt and completion, or a model with a chat template';
  const prompt = source && makePrompt(source, { tokenizer, chat, maxLength, place, hint });
  const said = labelOf(example);
  if (!prompt || said === undefined) {
    throw new GraftError('input', 'labels need rows that end in an answer: messages, or prompt and completion', {
      place,
    });
  }
  const answer = labels.findIndex((label) => label.trim() === said);
  if (answer < 0) {
    const problem = `the answer '${String(said).slice(0, 40)}' is none of the labels ${labels.join(', ')}`;
    throw new GraftError('input', problem, { place, hint: 'Name every answer of the rows as a label' });
  }
  return { prompt, answer };
}
