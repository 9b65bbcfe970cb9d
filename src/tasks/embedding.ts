/**
 * One vector per text or image. Pairs of texts that belong together are learned against the other pairs of the step (in-batch
 * negatives: cross-entropy of the cosine similarities divided by a temperature; arXiv 1705.00652, 1807.03748), pairs with a
 * score by the squared difference of their cosine similarity from it (sentence-transformers' MultipleNegativesRankingLoss,
 * CosineSimilarityLoss).
 */
import { GraftError } from '../base/index.ts';
import { checkedIds, type Example, isBlank, type Packed, type Row } from '../data/index.ts';
import type { TaskHead } from '../nn/index.ts';
import { ops, Tensor } from '../tensor/index.ts';
import { headOutput, rowsOf, weightedCrossEntropy } from './head-output.ts';
import { imageRow } from './image-rows.ts';
import { correlations, type Metric, wilson } from './metrics.ts';
import type { RowTools, Task, TaskOptions } from './task.ts';
import { textIds } from './text-rows.ts';

const cosine = (a: Float32Array, b: Float32Array): number => {
  let [ab, aa, bb] = [0, 0, 0];
  a.forEach((x, i) => {
    ab += x * b[i]!;
    aa += x * x;
    bb += b[i]! ** 2;
  });
  return ab / Math.sqrt(aa * bb || 1);
};

/** The second text of a pair and the score of the pair, where the example has them. */
function secondOf(example: Example, place: string, tools: RowTools): { second?: Example; score?: number } {
  if (example.kind === 'tokens') {
    const score = typeof example.labels === 'number' && { score: example.labels };
    if (!example.pairIds) return {};
    checkedIds(example.pairIds, tools.vocabSize, place);
    return { second: { kind: 'tokens', ids: example.pairIds, labels: undefined }, ...score };
  }
  if (example.kind !== 'labelled' || example.pair === undefined) return {};
  const score = example.label === undefined ? undefined : Number(example.label);
  if (score !== undefined && !Number.isFinite(score)) {
    const actual = JSON.stringify(example.label);
    throw new GraftError('input', `the label of a pair must be a number, its similarity, and is ${actual}`, { place });
  }
  return { second: { kind: 'text', text: example.pair }, ...(score !== undefined && { score }) };
}

export function embedding(head: TaskHead, { temperature = 0.05 }: TaskOptions): Task<Float32Array> {
  /** The text as sentence-transformers' settings of the model say that it is read. */
  const asRead = (example: Example): Example =>
    example.kind === 'text' ? { ...example, text: (head.prompt ?? '') + example.text } : example;
  /** Where the settings change the text, what is read: the prediction shows it instead of the row's text. */
  const textRead = (example: Example | undefined): { readonly text?: string } => {
    if ((!head.prompt && !head.lowercase) || !(example?.kind === 'text' || example?.kind === 'labelled')) return {};
    const text = (head.prompt ?? '') + example.text;
    return { text: head.lowercase ? text.toLowerCase() : text };
  };
  const inCase = (tools: RowTools): RowTools =>
    head.lowercase ? { ...tools, tokenizer: tools.tokenizer?.lowercased() } : tools;
  const rowOf = (example: Example, place: string, tools: RowTools) => {
    if (example.kind === 'image') return { row: imageRow(example, place, tools), cutTokens: 0 };
    const { ids, types, cutTokens } = textIds(asRead(example), head.name, place, inCase(tools));
    return { row: { ids, ...(types && { types }), labels: new Int32Array(), place }, cutTokens };
  };
  /** The first rows of pairs with their indices in the batch; the second row of a pair is at the next index. */
  const pairsIn = ({ rows }: Packed) => rows.flatMap((row, r) => (row.pair ? [{ row, r }] : []));

  return {
    head,
    comparesRows: true,
    metricNames: ['pearson', 'spearman', 'nearest_is_own'],

    rows(example, place, tools) {
      const { second, score } = secondOf(example, place, tools);
      if (!second && tools.labelled) {
        throw new GraftError('input', 'the row has no second text', { place, hint: 'Give text and text_pair' });
      }
      const isOneBlank = example.kind === 'labelled' && (isBlank(example.text) || (second && isBlank(example.pair)));
      if (isOneBlank) return { rows: [], cutTokens: 0 };
      const first = rowOf(example.kind === 'labelled' ? { kind: 'text', text: example.text } : example, place, tools);
      const pair = second && rowOf(second, place, tools);
      if (first.row.ids.length === 0 || pair?.row.ids.length === 0) return { rows: [], cutTokens: 0 };
      const row: Row = {
        ...first.row,
        example,
        ...(pair && { pair: pair.row }),
        ...(score !== undefined && { target: [score] }),
      };
      return { rows: [row], cutTokens: first.cutTokens + (pair?.cutTokens ?? 0) };
    },

    units: (batch) => pairsIn(batch).length,

    lossSum(model, hidden, batch) {
      const output = headOutput(model, hidden, batch);
      const norms = ops.sqrt(ops.addScalar(ops.sumDim(ops.mul(output, output), [-1], true), 1e-24));
      const vectors = ops.div(output, norms);
      const pick = (rows: readonly number[]) =>
        ops.indexSelect(vectors, 0, Tensor.from(BigInt64Array.from(rows, BigInt)));
      const pairs = pairsIn(batch);
      const losses: Tensor[] = [];
      const unscored = pairs.filter(({ row }) => !row.target).map(({ r }) => r);
      if (unscored.length > 0) {
        const cosines = ops.matmul(pick(unscored), ops.t(pick(unscored.map((r) => r + 1))));
        const scores = ops.divScalar(cosines, temperature);
        // The "class" of a first text is the index of its own second text.
        const classes = [...unscored.keys()];
        const weights = classes.map(() => 1);
        losses.push(weightedCrossEntropy(scores, classes, weights));
      }
      const scored = pairs.filter(({ row }) => row.target);
      if (scored.length > 0) {
        const firsts = scored.map(({ r }) => r);
        const cosines = ops.sumDim(ops.mul(pick(firsts), pick(firsts.map((r) => r + 1))), [-1]);
        const targets = scored.map(({ row }) => row.target![0]!);
        const difference = ops.sub(cosines, Tensor.from(targets, cosines.shape, cosines.dtype));
        losses.push(ops.sum(ops.mul(difference, difference)));
      }
      return losses.reduce((a, b) => ops.add(a, b));
    },

    outputs: (model, hidden, batch) => rowsOf(headOutput(model, hidden, batch)),

    metrics(rows, vectorOf) {
      const scored = rows.filter(({ target }) => target);
      const unscored = rows.filter(({ target }) => !target);
      const metrics: Metric[] = [];
      if (scored.length > 0) {
        const targets = scored.map(({ target }) => target![0]!);
        const cosines = scored.map((row) => cosine(vectorOf(row), vectorOf(row.pair!)));
        metrics.push(...correlations(targets, cosines, 'pairs'));
      }
      if (unscored.length > 0) {
        const seconds = unscored.map(({ pair }) => vectorOf(pair!));
        const correct = unscored.filter((row, i) => {
          let nearest = 0;
          const cosines = seconds.map((second) => cosine(vectorOf(row), second));
          cosines.forEach((value, at) => {
            if (value > cosines[nearest]! || (value === cosines[nearest]! && at === i)) nearest = at;
          });
          // Several rows may have the same second text.
          return nearest === i || String(unscored[nearest]!.pair!.ids) === String(row.pair!.ids);
        }).length;
        const count = unscored.length;
        metrics.push({ name: 'nearest_is_own', ...wilson(correct, count), count, of: 'pairs' });
      }
      return { metrics };
    },

    prediction([row], vectorOf) {
      const vector = Array.from(vectorOf(row!));
      const text = textRead(row!.example);
      if (!row!.pair) return { ...text, embedding: vector };
      return {
        ...text,
        similarity: cosine(vectorOf(row!), vectorOf(row!.pair)),
        embedding: vector,
        embeddingPair: Array.from(vectorOf(row!.pair)),
      };
    },
  };
}
