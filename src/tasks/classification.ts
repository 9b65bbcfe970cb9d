/** What classification of texts and of images have in common: one vector of scores per row, [R, L]. */
import { GraftError } from '../base/index.ts';
import type { Label, Packed } from '../data/index.ts';
import type { Model, TaskHead } from '../nn/index.ts';
import { ops, Tensor } from '../tensor/index.ts';
import { headOutput, rowsOf, weightedCrossEntropy } from './head-output.ts';
import { classOf, weightsOf } from './labels.ts';
import { bootstrap, confusionOf, correlations, f1, type Metric, macroF1, wilson } from './metrics.ts';
import type { Task, TaskOptions } from './task.ts';

/** transformers' `problem_type`: one class of several, several classes at a time, or a number. */
type Kind = 'single-label' | 'multi-label' | 'regression';

const kindOf = ({ labels, multiLabel }: TaskHead): Kind =>
  multiLabel ? 'multi-label' : labels.length === 1 ? 'regression' : 'single-label';

/**
 * The target of a row with this label.
 * @param fromIds whether the row was given as token ids; its label for several classes is then a 0 or 1 for each class,
 *   whatever the classes are called
 * @throws GraftError 'input' for a label that the head does not have, or of another kind
 */
export function targetOf(label: Label, head: TaskHead, place: string, fromIds = false): number[] {
  const kind = kindOf(head);
  const list = [label].flat() as (string | number)[];
  const wrongKind = (required: string) =>
    new GraftError('input', `the label ${JSON.stringify(label)} is not ${required}, which the head requires`, {
      place,
    });
  if (kind === 'regression') {
    const value = Array.isArray(label) || list[0] === '' ? Number.NaN : Number(list[0]);
    if (!Number.isFinite(value)) throw wrongKind('one number');
    return [value];
  }
  if (kind === 'single-label') {
    if (Array.isArray(label)) throw wrongKind('one class');
    return [classOf(list[0]!, head, place)];
  }
  const namesAreBits = head.labels.includes('0') || head.labels.includes('1');
  const isMultiHot = list.length === head.labels.length && list.every((one) => one === 0 || one === 1);
  if (isMultiHot && (fromIds || !namesAreBits)) return list as number[];
  const target = head.labels.map(() => 0);
  for (const one of list) target[classOf(one, head, place)] = 1;
  return target;
}

/** The task of a classification except `rows`. The output for a row is its scores, before softmax or sigmoid. */
export function classificationTask(head: TaskHead, options: TaskOptions): Omit<Task<Float32Array>, 'rows'> {
  const kind = kindOf(head);
  const weights = weightsOf(head, options.classWeights);
  if (kind === 'regression' && options.classWeights) {
    throw new GraftError('usage', 'class weights do not apply to regression, which has no classes', {
      place: 'class_weights',
      hint: 'Leave class_weights out',
    });
  }
  const count = head.labels.length;
  const targetsOf = ({ rows }: Packed) => rows.map(({ target }) => target!);
  /** The predicted classes, or the predicted number. */
  const predictionOf: Readonly<Record<Kind, (scores: Float32Array) => readonly number[]>> = {
    'single-label': (scores) => [scores.indexOf(Math.max(...scores))],
    'multi-label': (scores) => [...scores.keys()].filter((c) => scores[c]! > 0),
    regression: (scores) => [scores[0]!],
  };
  return {
    head,
    metricNames: {
      'single-label': ['accuracy', 'f1_macro'],
      'multi-label': ['exact_match', 'f1_micro', 'f1_macro'],
      regression: ['mse', 'pearson', 'spearman'],
    }[kind],

    units(batch) {
      if (kind === 'single-label') return targetsOf(batch).reduce((sum, [c]) => sum + weights[c!]!, 0);
      return batch.rows.length * (kind === 'multi-label' ? count : 1);
    },

    lossSum(model: Model, hidden: Tensor, batch: Packed): Tensor {
      const scores = headOutput(model, hidden, batch);
      const targets = targetsOf(batch);
      if (kind === 'single-label') {
        const classes = targets.map(([c]) => c!);
        return weightedCrossEntropy(scores, classes, weights);
      }
      const values = Tensor.from(targets.flat(), scores.shape, scores.dtype);
      if (kind === 'regression') {
        const difference = ops.sub(scores, values);
        return ops.sum(ops.mul(difference, difference));
      }
      // Binary cross-entropy of a score x and a target y: log(1 + eˣ) − x y.
      const losses = ops.sub(ops.logsumexp(ops.stack([scores, ops.zerosLike(scores)]), [0]), ops.mul(scores, values));
      return ops.sum(ops.mul(losses, Tensor.from(weights, [1, count], scores.dtype)));
    },

    outputs: (model, hidden, batch) => rowsOf(headOutput(model, hidden, batch)),

    metrics(rows, outputOf) {
      const predictions = rows.map((row) => predictionOf[kind](outputOf(row)));
      const targets = rows.map(({ target }) => target!);
      if (kind === 'regression') {
        return {
          metrics: regressionMetrics(
            targets.map(([y]) => y!),
            predictions.map(([y]) => y!),
          ),
        };
      }
      if (kind === 'multi-label') {
        const multiHot = predictions.map((classes) => head.labels.map((_, c) => (classes.includes(c) ? 1 : 0)));
        const hits = targets.map((row, i) => row.every((value, c) => value === multiHot[i]![c]));
        return { metrics: multiLabelMetrics(targets, multiHot, hits), hits };
      }
      const [trueClasses, predictedClasses] = [targets.map(([c]) => c!), predictions.map(([c]) => c!)];
      const n = rows.length;
      const hits = trueClasses.map((c, i) => c === predictedClasses[i]);
      const macro = (indices: readonly number[]) => macroF1(confusionOf(trueClasses, predictedClasses, count, indices));
      return {
        metrics: [
          { name: 'accuracy', ...wilson(hits.filter(Boolean).length, n), count: n, of: 'rows' },
          { name: 'f1_macro', ...bootstrap(n, macro), count: n, of: 'rows' },
        ],
        hits,
        confusion: { labels: head.labels, counts: confusionOf(trueClasses, predictedClasses, count) },
      };
    },

    prediction([row], outputOf) {
      const scores = outputOf(row!);
      if (kind === 'regression') return { value: scores[0]! };
      const probabilityOf =
        kind === 'single-label' ? softmax(scores) : Array.from(scores, (x) => 1 / (1 + Math.exp(-x)));
      const probabilities = Object.fromEntries(head.labels.map((label, c) => [label, probabilityOf[c]!]));
      const labels = predictionOf[kind](scores).map((c) => head.labels[c]!);
      return kind === 'single-label' ? { label: labels[0], probabilities } : { labels, probabilities };
    },
  };
}

function softmax(scores: Float32Array): number[] {
  const max = Math.max(...scores);
  const exponentials = Array.from(scores, (x) => Math.exp(x - max));
  const sum = exponentials.reduce((a, b) => a + b, 0);
  return exponentials.map((x) => x / sum);
}

/** Mean squared error and correlations. */
function regressionMetrics(targets: readonly number[], predictions: readonly number[]): Metric[] {
  const n = targets.length;
  const mse = (indices: readonly number[]) =>
    indices.reduce((sum, i) => sum + (targets[i]! - predictions[i]!) ** 2, 0) / indices.length;
  return [
    { name: 'mse', ...bootstrap(n, mse), count: n, of: 'rows', error: true },
    ...correlations(targets, predictions, 'rows'),
  ];
}

/**
 * The share of rows whose classes are all right, and F1 over all decisions (micro) and as the mean over classes (macro).
 * @param targets multi-hot vectors [rows][classes], as are the predictions
 */
function multiLabelMetrics(
  targets: readonly (readonly number[])[],
  predictions: readonly (readonly number[])[],
  hits: readonly boolean[],
): Metric[] {
  const n = targets.length;
  const classes = [...(targets[0] ?? []).keys()];
  const countsOf = (indices: readonly number[], c: number) => {
    let [truePositives, trueCount, predictedCount] = [0, 0, 0];
    for (const i of indices) {
      trueCount += targets[i]![c]!;
      predictedCount += predictions[i]![c]!;
      truePositives += targets[i]![c]! * predictions[i]![c]!;
    }
    return [truePositives, predictedCount, trueCount] as const;
  };
  const micro = (indices: readonly number[]) => {
    const perClass = classes.map((c) => countsOf(indices, c));
    const total = (at: 0 | 1 | 2) => perClass.reduce((sum, counts) => sum + counts[at], 0);
    return f1(total(0), total(1), total(2));
  };
  const macro = (indices: readonly number[]) =>
    classes.reduce((sum, c) => sum + f1(...countsOf(indices, c)), 0) / classes.length;
  return [
    { name: 'exact_match', ...wilson(hits.filter(Boolean).length, n), count: n, of: 'rows' },
    { name: 'f1_micro', ...bootstrap(n, micro), count: n * classes.length, of: 'labels' },
    { name: 'f1_macro', ...bootstrap(n, macro), count: n * classes.length, of: 'labels' },
  ];
}

/** Returns the label of a row. @throws GraftError 'input' for a row without one */
export function requireLabel(label: Label | undefined, place: string): Label {
  if (label !== undefined) return label;
  throw new GraftError('input', 'the row has no label', {
    place,
    hint: 'Add a label or remove the row; graft predict needs no labels',
  });
}
