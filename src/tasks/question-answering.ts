/**
 * The answer to a question as a span of its context: the head scores each token as a start and as an end. A context that is too
 * long is read in windows that overlap; in a window without the answer both places are the row's first token, as they are
 * for a question that has none. Loss: mean of both cross-entropies over the row's tokens (transformers'
 * `…ForQuestionAnswering`; windows as in its `run_qa.py`).
 */
import { GraftError } from '../base/index.ts';
import { type Answer, checkedIds, type Example, type Row } from '../data/index.ts';
import type { TaskHead } from '../nn/index.ts';
import { ops, Tensor } from '../tensor/index.ts';
import { headOutput } from './losses.ts';
import { bootstrap, wilson } from './metrics.ts';
import { squadScores } from './squad.ts';
import type { ExampleRows, RowTools, Task } from './task.ts';
import { requireTokenizer, textIds, unfit } from './text-rows.ts';

type Question = Extract<Example, { kind: 'question' }>;

/** Scores of a row's tokens [T, 2]: start and end, in turn. */
type Scores = Float32Array;

/** Tokens of the longest answer, and starts and ends that are tried with one another. */
const longest = 30;
const tried = 20;

/** @throws GraftError 'input' for an answer that does not stand where it says */
function checked({ text, start }: Answer, { context }: Question, place: string): Answer {
  const there = context.slice(start, start + text.length);
  if (text !== '' && there === text) return { text, start };
  const found = context.indexOf(text);
  throw new GraftError('input', `the answer '${text.slice(0, 40)}' does not stand at ${start} of its context`, {
    place,
    hint:
      text !== '' && found >= 0
        ? `It stands at ${found}: answer_start counts characters from 0`
        : 'An answer must be a part of the context, letter by letter',
  });
}

function windows(example: Question, place: string, tools: RowTools): ExampleRows {
  const tokenizer = requireTokenizer(tools.tokenizer, place);
  const question = tokenizer.encode(example.question, { addSpecialTokens: false });
  const { ids, spans } = tokenizer.encodeWithSpans(example.context);
  const room = tools.maxLength - tokenizer.frame([], []).ids.length - question.length;
  if (room < 1) {
    throw new GraftError('input', `the question's ${question.length} tokens leave no room for its context`, {
      place,
      hint: `Raise max_length above ${tools.maxLength}, or shorten the question`,
    });
  }
  const answer = tools.labelled ? example.answers?.[0] && checked(example.answers[0], example, place) : undefined;
  const step = room > tools.stride ? room - tools.stride : Math.ceil(room / 2);
  const rows: Row[] = [];
  for (let from = 0; from === 0 || from - step + room < ids.length; from += step) {
    const to = Math.min(from + room, ids.length);
    const frame = tokenizer.frame(question, ids.subarray(from, to));
    checkedIds([...frame.ids], tools.vocabSize, place);
    const own = new Int32Array(2 * frame.ids.length).fill(-1);
    own.set(spans.subarray(2 * from, 2 * to), 2 * frame.starts[1]!);
    const target = tools.labelled && { target: targetIn(own, answer) };
    rows.push({ ids: frame.ids, types: frame.types, labels: new Int32Array(), place, example, spans: own, ...target });
  }
  return { rows, cut: 0 };
}

/** First and last token of the answer, or the row's first where the answer is not wholly in the window. */
function targetIn(spans: Int32Array, answer: Answer | undefined): [number, number] {
  if (!answer) return [0, 0];
  const end = answer.start + answer.text.length;
  const tokens = Array.from({ length: spans.length / 2 }, (_, i) => i).filter((i) => spans[2 * i]! >= 0);
  const inside = tokens.filter((i) => spans[2 * i + 1]! > answer.start && spans[2 * i]! < end);
  const [first, last] = [inside[0], inside.at(-1)];
  if (first === undefined || spans[2 * first]! > answer.start || spans[2 * last! + 1]! < end) return [0, 0];
  return [first, last!];
}

interface Said {
  readonly text: string;
  /** UTF-16 unit of the context. */
  readonly start: number;
  /** Sum of both scores, less that of saying nothing in the same window; below 0: nothing is likelier. */
  readonly score: number;
}

const best = (scores: Scores, which: 0 | 1, allowed: readonly number[]): number[] =>
  [...allowed].sort((a, b) => scores[2 * b + which]! - scores[2 * a + which]!).slice(0, tried);

/**
 * The best span over all windows of an example. Scores of different windows are compared by their distance from the score of
 * the first token, which windows without the answer are trained to: a soft-max knows no height of its own.
 */
function answerOf(rows: readonly Row[], scoresOf: (row: Row) => Scores): Said {
  let said: Said = { text: '', start: 0, score: Number.NEGATIVE_INFINITY };
  for (const row of rows) {
    const [scores, spans] = [scoresOf(row), row.spans!];
    const nothing = scores[0]! + scores[1]!;
    const allowed = [...row.ids.keys()].filter((i) => spans[2 * i]! >= 0);
    for (const s of best(scores, 0, allowed)) {
      for (const e of best(scores, 1, allowed)) {
        const score = scores[2 * s]! + scores[2 * e + 1]! - nothing;
        if (e < s || e - s >= longest || score <= said.score) continue;
        const text = (row.example as Question).context.slice(spans[2 * s]!, spans[2 * e + 1]!);
        said = { text: text.trim(), start: spans[2 * s]! + text.length - text.trimStart().length, score };
      }
    }
  }
  return said;
}

export const questionAnswering = (head: TaskHead): Task<Scores> => ({
  head,

  rows(example, place, tools) {
    if (example.kind === 'question') {
      if (tools.labelled && !example.answers) throw new GraftError('input', 'the row has no answers', { place });
      return windows(example, place, tools);
    }
    if (example.kind !== 'tokens') throw unfit(example, head.name, 'question, context and answers', place);
    const { ids, types, cut } = textIds(example, head.name, place, tools);
    const given = [example.labels ?? []].flat() as number[];
    if (tools.labelled && (given.length !== 2 || given.some((at) => !(at >= 0 && at < ids.length)))) {
      throw new GraftError('input', `labels must be start and end of the answer, below ${ids.length}`, { place });
    }
    const target = tools.labelled && { target: given };
    return { rows: [{ ids, ...(types && { types }), labels: new Int32Array(), place, example, ...target }], cut };
  },

  units: ({ rows }) => rows.length,

  lossSum(model, hidden, batch) {
    const scores = headOutput(model, hidden, batch);
    const starts = batch.rowStarts;
    const places = batch.rows.map((_, r) =>
      ops.logSoftmax(ops.narrow(scores, 0, starts[r]!, starts[r + 1]! - starts[r]!), 0),
    );
    const wanted = batch.rows.flatMap(({ target }, r) => [
      2 * (starts[r]! + target![0]!),
      2 * (starts[r]! + target![1]!) + 1,
    ]);
    const flat = ops.reshape(ops.cat(places, 0), [-1]);
    return ops.mulScalar(ops.sum(ops.indexSelect(flat, 0, Tensor.from(BigInt64Array.from(wanted, BigInt)))), -0.5);
  },

  outputs(model, hidden, batch) {
    const scores = ops.contiguous(headOutput(model, hidden, batch)).data() as Float32Array;
    return batch.rows.map((_, r) => scores.slice(2 * batch.rowStarts[r]!, 2 * batch.rowStarts[r + 1]!));
  },

  metrics(rows, said) {
    const questions = [...Map.groupBy(rows, ({ example }) => example).values()].filter(([row]) => row!.spans);
    if (questions.length === 0) return { metrics: [] };
    const answers = questions.map(([row]) => (row!.example as Question).answers!.map(({ text }) => text));
    // Nothing is an answer only where the rows know questions without one.
    const mayBeNone = answers.some((list) => list.length === 0);
    const scores = questions.map((list, q) => {
      const { text, score } = answerOf(list, said);
      return squadScores(mayBeNone && score < 0 ? '' : text, answers[q]!);
    });
    const n = scores.length;
    const hits = scores.map((s) => s.exact === 1);
    const f1 = (places: readonly number[]) => places.reduce((sum, i) => sum + scores[i]!.f1, 0) / places.length;
    return {
      metrics: [
        { name: 'exact_match', ...wilson(hits.filter(Boolean).length, n), count: n, of: 'questions' },
        { name: 'f1', ...bootstrap(n, f1), count: n, of: 'questions' },
      ],
      hits,
    };
  },

  prediction(rows, said) {
    const [row] = rows as [Row];
    if (row.spans) {
      const { text, start, score } = answerOf(rows, said);
      return { answer: text, start, score };
    }
    const scores = said(row);
    const all = [...row.ids.keys()];
    return { start: best(scores, 0, all)[0]!, end: best(scores, 1, all)[0]! };
  },
});
