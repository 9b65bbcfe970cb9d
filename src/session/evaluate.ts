import { GraftError } from '../base/index.ts';
import {
  ChatTemplate,
  type Example,
  microBatches,
  pack,
  readRecords,
  type Tokenizer,
  toExample,
  toRows,
} from '../data/index.ts';
import { scoreChoices } from '../generate/index.ts';
import { resolveModel } from '../io/index.ts';
import type { Quantize } from '../models/index.ts';
import { evaluateLoss, explainedMeasurement, wilson } from '../train/index.ts';
import { residentModel, residentTokenizer } from './resident.ts';
import { useThreads } from './threads.ts';

export interface EvaluateArgs {
  readonly model: string;
  readonly adapter?: string;
  readonly data: string;
  readonly labels?: readonly string[];
  readonly maxLength?: number;
  readonly quantize?: Quantize;
  readonly threads?: number;
}

/** Loss and perplexity over rows; with labels, how often the row's own answer is the likeliest of them. */
export async function evaluateJob(args: EvaluateArgs) {
  useThreads(args.threads);
  const path = await resolveModel(args.model);
  const tokenizer = residentTokenizer(path);
  const chat = ChatTemplate.of(tokenizer);
  const model = residentModel(path, args.quantize ?? 'none', args.adapter);
  const records = await readRecords(args.data);
  const examples = records.map((record) => ({ example: toExample(record, 'auto'), place: record.place }));
  const maxLength = Math.min(args.maxLength ?? 1024, model.contextLength);
  const { rows, report } = toRows(examples, {
    tokenizer,
    chat,
    vocabSize: model.vocabSize,
    maxLength,
    trainOn: 'completion',
  });
  const measure = () => {
    try {
      return evaluateLoss(model, microBatches(rows, 1024).map(pack));
    } catch (error) {
      throw explainedMeasurement(error, model, args.adapter ?? path);
    }
  };
  const { loss, tokens } = measure();
  const result = { loss, perplexity: Math.exp(loss), tokens, rows: rows.length, report };
  if (!args.labels) return { ...result, accuracy: null };

  const choices = args.labels.map((label) => [...tokenizer.encode(label, { addSpecialTokens: false })]);
  const answers = examples.map(({ example, place }) => question(example, place, args.labels!, tokenizer, chat));
  const room = maxLength - Math.max(...choices.map((choice) => choice.length));
  const scores = scoreChoices(
    model,
    answers.map(({ prompt }) => shortened(prompt, room)),
    choices,
  );
  const shortenedPrompts = answers.filter(({ prompt }) => prompt.length > room).length;
  const right = scores.filter((row, i) => row.indexOf(Math.max(...row)) === answers[i]!.answer).length;
  return { ...result, accuracy: { rows: answers.length, shortenedPrompts, ...wilson(right, answers.length) } };
}

/** A prompt that is too long loses its middle: the question stands at the beginning, and where to answer at the end. */
function shortened(prompt: readonly number[], room: number): readonly number[] {
  if (prompt.length <= room) return prompt;
  const tail = Math.min(32, Math.floor(room / 4));
  return [...prompt.slice(0, room - tail), ...prompt.slice(prompt.length - tail)];
}

/** The tokens before the last answer, and which label it is. */
function question(
  example: Example,
  place: string,
  labels: readonly string[],
  tokenizer: Tokenizer,
  chat: ChatTemplate | undefined,
) {
  const index = (said: string) => {
    const found = labels.indexOf(said.trim());
    if (found < 0)
      throw new GraftError(
        'input',
        `the answer '${said.trim().slice(0, 40)}' is none of the labels ${labels.join(', ')}`,
        { place },
      );
    return found;
  };
  if (example.kind === 'completion')
    return { prompt: [...tokenizer.encode(example.prompt)], answer: index(example.completion) };
  const last = example.kind === 'chat' ? example.messages.at(-1) : undefined;
  if (example.kind !== 'chat' || last?.role !== 'assistant' || !chat) {
    throw new GraftError('input', 'labels need rows that end in an answer: messages, or prompt and completion', {
      place,
    });
  }
  const text = chat.render(example.messages.slice(0, -1), { addGenerationPrompt: true, tools: example.tools });
  return { prompt: [...tokenizer.encode(text, { addSpecialTokens: false })], answer: index(last.content) };
}
