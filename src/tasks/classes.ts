/** What classifications of texts and of images have in common: one vector of scores a row, [R, L]. */
import { GraftError } from '../base/index.ts';
import type { Label, Packed } from '../data/index.ts';
import type { Model, TaskHead } from '../nn/index.ts';
import { ops, Tensor } from '../tensor/index.ts';
import { classOf, weightsOf } from './labels.ts';
import { headOutput, rowsOfNumbers, weightedCrossEntropy } from './losses.ts';
import { bootstrap, confusionOf, correlations, f1, macroF1, wilson } from './metrics.ts';
import type { Task, TaskOptions } from './task.ts';

/** One class of several, several classes at a time, or a number. */
type Kind = 'single' | 'several' | 'number';

const kindOf = ({ labels, multiLabel }: TaskHead): Kind =>
  multiLabel ? 'several' : labels.length === 1 ? 'number' : 'single';

/**
 * The target of a row with this label.
 * @param ofIds the row came as token ids: of several classes it has a 0 or 1 for each, whatever they are called
 * @throws GraftError 'input' for one that the head does not have, or of another kind
 */
export function targetOf(label: Label, head: TaskHead, place: string, ofIds = false): number[] {
  const kind = kindOf(head);
  const list = [label].flat() as (string | number)[];
  const wrong = (wanted: string) =>
    new GraftError('input', `the label ${JSON.stringify(label)} is not ${wanted}, which this head is for`, { place });
  if (kind === 'number') {
    const value = Array.isArray(label) || list[0] === '' ? Number.NaN : Number(list[0]);
    if (!Number.isFinite(value)) throw wrong('one number');
    return [value];
  }
  if (kind === 'single') {
    if (Array.isArray(label)) throw wrong('one class');
    return [classOf(list[0]!, head, place)];
  }
  const named = head.labels.includes('0') || head.labels.includes('1');
  const each = list.length === head.labels.length && list.every((one) => one === 0 || one === 1);
  if (each && (ofIds || !named)) return list as number[];
  const target = head.labels.map(() => 0);
  for (const one of list) target[classOf(one, head, place)] = 1;
  return target;
}

/** Everything but how an example becomes a row. The answer to a row are its scores, before soft-max or sigmoid. */
export function classTask(head: TaskHead, options: TaskOptions): Omit<Task<Float32Array>, 'rows'> {
  const kind = kindOf(head);
  const weights = weightsOf(head, options.classWeights);
  if (kind === 'number' && options.classWeights)
    throw new GraftError('usage', 'a regression has no classes to weigh', { place: 'class_weights' });
  const count = head.labels.length;
  const targets = ({ rows }: Packed) => rows.map(({ target }) => target!);
  const predicted: Readonly<Record<Kind, (scores: Float32Array) => readonly number[]>> = {
    single: (scores) => [scores.indexOf(Math.max(...scores))],
    several: (scores) => [...scores.keys()].filter((c) => scores[c]! > 0),
    number: (scores) => [scores[0]!],
  };
  return {
    head,

    units(batch) {
      if (kind === 'single') return targets(batch).reduce((sum, [c]) => sum + weights[c!]!, 0);
      return batch.rows.length * (kind === 'several' ? count : 1);
    },

    lossSum(model: Model, hidden: Tensor, batch: Packed): Tensor {
      const scores = headOutput(model, hidden, batch);
      const wanted = targets(batch);
      if (kind === 'single')
        return weightedCrossEntropy(
          scores,
          wanted.map(([c]) => c!),
          weights,
        );
      const values = Tensor.from(wanted.flat(), scores.shape, scores.dtype);
      if (kind === 'number') {
        const miss = ops.sub(scores, values);
        return ops.sum(ops.mul(miss, miss));
      }
      // Of a sigmoid x and a target y: log(1 + eˣ) − x y.
      const each = ops.sub(ops.logsumexp(ops.stack([scores, ops.zerosLike(scores)]), [0]), ops.mul(scores, values));
      return ops.sum(ops.mul(each, Tensor.from(weights, [1, count], scores.dtype)));
    },

    outputs: (model, hidden, batch) => rowsOfNumbers(headOutput(model, hidden, batch)),

    metrics(rows, answerTo) {
      const said = rows.map((row) => predicted[kind](answerTo(row)));
      const wanted = rows.map(({ target }) => target!);
      const n = rows.length;
      if (kind === 'number') {
        const [x, y] = [wanted.map(([v]) => v!), said.map(([v]) => v!)];
        const mse = (places: readonly number[]) =>
          places.reduce((sum, i) => sum + (x[i]! - y[i]!) ** 2, 0) / places.length;
        return {
          metrics: [
            { name: 'mse', ...bootstrap(n, mse), count: n, of: 'rows', error: true },
            ...correlations(x, y, 'rows'),
          ],
        };
      }
      if (kind === 'several') {
        const sets = said.map((classes) => head.labels.map((_, c) => (classes.includes(c) ? 1 : 0)));
        const hits = wanted.map((row, i) => row.every((value, c) => value === sets[i]![c]));
        return { metrics: severalMetrics(wanted, sets, hits), hits };
      }
      const [x, y] = [wanted.map(([c]) => c!), said.map(([c]) => c!)];
      const hits = x.map((c, i) => c === y[i]);
      const macro = (places: readonly number[]) => macroF1(confusionOf(x, y, count, places));
      return {
        metrics: [
          { name: 'accuracy', ...wilson(hits.filter(Boolean).length, n), count: n, of: 'rows' },
          { name: 'f1_macro', ...bootstrap(n, macro), count: n, of: 'rows' },
        ],
        hits,
        confusion: { labels: head.labels, counts: confusionOf(x, y, count) },
      };
    },

    prediction([row], answerTo) {
      const scores = answerTo(row!);
      if (kind === 'number') return { value: scores[0]! };
      const shares = kind === 'single' ? softmax(scores) : Array.from(scores, (x) => 1 / (1 + Math.exp(-x)));
      const probabilities = Object.fromEntries(head.labels.map((label, c) => [label, shares[c]!]));
      const labels = predicted[kind](scores).map((c) => head.labels[c]!);
      return kind === 'single' ? { label: labels[0], probabilities } : { labels, probabilities };
    },
  };
}

function softmax(scores: Float32Array): number[] {
  const top = Math.max(...scores);
  const shares = Array.from(scores, (x) => Math.exp(x - top));
  const sum = shares.reduce((a, b) => a + b, 0);
  return shares.map((x) => x / sum);
}

/** Rows of which every class is right, and F1 over all decisions and as the mean of the classes'. */
function severalMetrics(
  wanted: readonly (readonly number[])[],
  said: readonly (readonly number[])[],
  hits: readonly boolean[],
) {
  const n = wanted.length;
  const classes = [...(wanted[0] ?? []).keys()];
  const sums = (places: readonly number[], c: number) => {
    let [hits, w, s] = [0, 0, 0];
    for (const i of places) {
      w += wanted[i]![c]!;
      s += said[i]![c]!;
      hits += wanted[i]![c]! * said[i]![c]!;
    }
    return [hits, s, w] as const;
  };
  const micro = (places: readonly number[]) => {
    const all = classes.map((c) => sums(places, c));
    const total = (at: 0 | 1 | 2) => all.reduce((sum, one) => sum + one[at], 0);
    return f1(total(0), total(1), total(2));
  };
  const macro = (places: readonly number[]) =>
    classes.reduce((sum, c) => sum + f1(...sums(places, c)), 0) / classes.length;
  return [
    { name: 'exact_match', ...wilson(hits.filter(Boolean).length, n), count: n, of: 'rows' },
    { name: 'f1_micro', ...bootstrap(n, micro), count: n * classes.length, of: 'labels' },
    { name: 'f1_macro', ...bootstrap(n, macro), count: n * classes.length, of: 'labels' },
  ] as const;
}

/** @throws GraftError 'input' for a row that lacks the label it needs */
export function requireLabel(label: Label | undefined, place: string): Label {
  if (label !== undefined) return label;
  throw new GraftError('input', 'the row has no label', {
    place,
    hint: 'Give it a label, or leave it out; graft predict needs none',
  });
}
