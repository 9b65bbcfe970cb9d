/**
 * Extractive question answering: the answer is a span of the context, and the head scores each token as its start and as its
 * end. A context that is too long is split into overlapping windows; in a window without the answer, start and end are the
 * row's first token, as they are for a question without an answer. Loss: mean of both cross-entropies over the row's tokens
 * (transformers' `…ForQuestionAnswering`; windows as in its `run_qa.py`).
 */
import { GraftError } from '../base/index.ts';
import { type Answer, checkedIds, type Example, type Row, requireTokenizer } from '../data/index.ts';
import type { TaskHead } from '../nn/index.ts';
import { ops, Tensor } from '../tensor/index.ts';
import { headOutput } from './head-output.ts';
import { bootstrap, wilson } from './metrics.ts';
import { squadScores } from './squad.ts';
import type { ExampleRows, RowTools, Task } from './task.ts';
import { textIds, unsupportedRow } from './text-rows.ts';

type Question = Extract<Example, { kind: 'question' }>;

/** Scores of a row's tokens [T, 2]: as start and as end. */
type Scores = Float32Array;

/** The longest answer, in tokens, and how many starts and ends are combined; as in `run_qa.py`. */
const MAX_ANSWER_TOKENS = 30;
const BEST_POSITIONS = 20;

/** The answer, checked. @throws GraftError 'input' for one that is not in the context at its position */
function checkedAnswer({ text, start }: Answer, { context }: Question, place: string): Answer {
  if (text !== '' && context.slice(start, start + text.length) === text) return { text, start };
  const position = context.indexOf(text);
  throw new GraftError('input', `the answer '${text.slice(0, 40)}' is not at position ${start} of its context`, {
    place,
    hint:
      text !== '' && position >= 0
        ? `It is at position ${position}: answer_start counts characters from 0`
        : 'An answer must be an exact part of the context',
  });
}

/** The rows of a question: its context in one window or several. */
function windowsOf(example: Question, place: string, tools: RowTools): ExampleRows {
  const tokenizer = requireTokenizer(tools.tokenizer, place);
  const question = tokenizer.encode(example.question, { addSpecialTokens: false });
  const { ids, spans } = tokenizer.encodeWithSpans(example.context);
  const room = tools.maxLength - tokenizer.withSpecialTokens([], []).ids.length - question.length;
  if (room < 1) {
    throw new GraftError('input', `the question's ${question.length} tokens leave no room for its context`, {
      place,
      hint: `Raise max_length above ${tools.maxLength}, or shorten the question`,
    });
  }
  const [first, ...others] = (tools.labelled && example.answers) || [];
  const answer = first && checkedAnswer(first, example, place);
  const step = room > tools.stride ? room - tools.stride : Math.ceil(room / 2);
  const rows: Row[] = [];
  for (let from = 0; from === 0 || from - step + room < ids.length; from += step) {
    const to = Math.min(from + room, ids.length);
    const row = tokenizer.withSpecialTokens(question, ids.subarray(from, to));
    checkedIds([...row.ids], tools.vocabSize, place);
    const rowSpans = new Int32Array(2 * row.ids.length).fill(-1);
    rowSpans.set(spans.subarray(2 * from, 2 * to), 2 * row.starts[1]!);
    const target = tools.labelled && { target: targetIn(rowSpans, answer) };
    const { ids: rowIds, types } = row;
    rows.push({ ids: rowIds, types, labels: new Int32Array(), place, example, spans: rowSpans, ...target });
  }
  const splitsAnswer = answer !== undefined && rows.every(({ target }) => target?.[1] === 0);
  const hasMoreAnswers = others.some(({ text, start }) => text !== answer!.text || start !== answer!.start);
  return { rows, cutTokens: 0, ...(splitsAnswer && { splitsAnswer }), ...(hasMoreAnswers && { hasMoreAnswers }) };
}

/** First and last token of the answer; both 0 where the window does not contain all of it. */
function targetIn(spans: Int32Array, answer: Answer | undefined): [number, number] {
  if (!answer) return [0, 0];
  const end = answer.start + answer.text.length;
  const tokens = Array.from({ length: spans.length / 2 }, (_, i) => i).filter((i) => spans[2 * i]! >= 0);
  const answerTokens = tokens.filter((i) => spans[2 * i + 1]! > answer.start && spans[2 * i]! < end);
  const [first, last] = [answerTokens[0], answerTokens.at(-1)];
  if (first === undefined || spans[2 * first]! > answer.start || spans[2 * last! + 1]! < end) return [0, 0];
  return [first, last!];
}

interface PredictedAnswer {
  readonly text: string;
  /** Position in the context, in UTF-16 units. */
  readonly start: number;
  /** Score of start and end minus that of no answer in the same window; below 0, no answer is likelier. */
  readonly score: number;
}

/** The tokens with the best scores as start (0) or end (1), best first. */
const bestTokens = (scores: Scores, which: 0 | 1, allowed: readonly number[]): number[] =>
  [...allowed].sort((a, b) => scores[2 * b + which]! - scores[2 * a + which]!).slice(0, BEST_POSITIONS);

/**
 * The best span over all windows of an example. Windows are compared by the difference of a span's score from that of the first
 * token, which stands for no answer: softmax is invariant to a constant, so raw scores of different windows are not comparable.
 */
function answerOf(rows: readonly Row[], scoresOf: (row: Row) => Scores): PredictedAnswer {
  let answer: PredictedAnswer = { text: '', start: 0, score: Number.NEGATIVE_INFINITY };
  for (const row of rows) {
    const [scores, spans] = [scoresOf(row), row.spans!];
    const noAnswerScore = scores[0]! + scores[1]!;
    const allowed = [...row.ids.keys()].filter((i) => spans[2 * i]! >= 0);
    for (const s of bestTokens(scores, 0, allowed)) {
      for (const e of bestTokens(scores, 1, allowed)) {
        const score = scores[2 * s]! + scores[2 * e + 1]! - noAnswerScore;
        if (e < s || e - s >= MAX_ANSWER_TOKENS || score <= answer.score) continue;
        const text = (row.example as Question).context.slice(spans[2 * s]!, spans[2 * e + 1]!);
        answer = { text: text.trim(), start: spans[2 * s]! + text.length - text.trimStart().length, score };
      }
    }
  }
  return answer;
}

export const questionAnswering = (head: TaskHead): Task<Scores> => ({
  head,
  metricNames: ['exact_match', 'f1'],

  rows(example, place, tools) {
    if (example.kind === 'question') {
      if (tools.labelled && !example.answers) throw new GraftError('input', 'the row has no answers', { place });
      return windowsOf(example, place, tools);
    }
    if (example.kind !== 'tokens')
      throw unsupportedRow(example, head.name, 'rows with question, context and answers', place);
    const { ids, types, cutTokens } = textIds(example, head.name, place, tools);
    const labels = [example.labels ?? []].flat() as number[];
    if (tools.labelled && (labels.length !== 2 || labels.some((at) => !(at >= 0 && at < ids.length)))) {
      const problem = `labels must be the first and the last token of the answer, each below ${ids.length}`;
      throw new GraftError('input', problem, { place });
    }
    const target = tools.labelled && { target: labels };
    return { rows: [{ ids, ...(types && { types }), labels: new Int32Array(), place, example, ...target }], cutTokens };
  },

  units: ({ rows }) => rows.length,

  lossSum(model, hidden, batch) {
    const scores = headOutput(model, hidden, batch);
    const starts = batch.rowStarts;
    const logProbabilities = batch.rows.map((_, r) =>
      ops.logSoftmax(ops.narrow(scores, 0, starts[r]!, starts[r + 1]! - starts[r]!), 0),
    );
    const targets = batch.rows.flatMap(({ target }, r) => [
      2 * (starts[r]! + target![0]!),
      2 * (starts[r]! + target![1]!) + 1,
    ]);
    const flat = ops.reshape(ops.cat(logProbabilities, 0), [-1]);
    return ops.mulScalar(ops.sum(ops.indexSelect(flat, 0, Tensor.from(BigInt64Array.from(targets, BigInt)))), -0.5);
  },

  outputs(model, hidden, batch) {
    const scores = ops.contiguous(headOutput(model, hidden, batch)).data() as Float32Array;
    return batch.rows.map((_, r) => scores.slice(2 * batch.rowStarts[r]!, 2 * batch.rowStarts[r + 1]!));
  },

  metrics(rows, scoresOf) {
    const questions = [...Map.groupBy(rows, ({ example }) => example).values()].filter(([row]) => row!.spans);
    if (questions.length === 0) return { metrics: [] };
    const references = questions.map(([row]) => (row!.example as Question).answers!.map(({ text }) => text));
    // No answer is predicted only where some of the questions have none.
    const someUnanswerable = references.some((answers) => answers.length === 0);
    const scores = questions.map((windows, q) => {
      const { text, score } = answerOf(windows, scoresOf);
      return squadScores(someUnanswerable && score < 0 ? '' : text, references[q]!);
    });
    const n = scores.length;
    const hits = scores.map((s) => s.exact === 1);
    const meanF1 = (indices: readonly number[]) => indices.reduce((sum, i) => sum + scores[i]!.f1, 0) / indices.length;
    return {
      metrics: [
        { name: 'exact_match', ...wilson(hits.filter(Boolean).length, n), count: n, of: 'questions' },
        { name: 'f1', ...bootstrap(n, meanF1), count: n, of: 'questions' },
      ],
      hits,
    };
  },

  prediction(rows, scoresOf) {
    const [row] = rows as [Row];
    if (row.spans) {
      const { text, start, score } = answerOf(rows, scoresOf);
      return { answer: text, start, score };
    }
    const scores = scoresOf(row);
    const tokens = [...row.ids.keys()];
    return { start: bestTokens(scores, 0, tokens)[0]!, end: bestTokens(scores, 1, tokens)[0]! };
  },
});
