/**
 * One vector a text, or an image. Pairs of texts that belong together are learned against the other pairs of the step (in-batch
 * negatives: cross-entropy of the cosines divided by a temperature; arXiv 1705.00652, 1807.03748), pairs with a score by the
 * squared difference of their cosine from it (sentence-transformers' MultipleNegativesRankingLoss, CosineSimilarityLoss).
 */
import { GraftError } from '../base/index.ts';
import { checkedIds, type Example, type Packed, type Row } from '../data/index.ts';
import type { TaskHead } from '../nn/index.ts';
import { ops, Tensor } from '../tensor/index.ts';
import { imageRow } from './image-rows.ts';
import { headOutput, rowsOfNumbers, weightedCrossEntropy } from './losses.ts';
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

/** The second text of a pair and its score, where the example has them. */
function second(example: Example, place: string, tools: RowTools): { other?: Example; score?: number } {
  if (example.kind === 'tokens') {
    const score = typeof example.labels === 'number' && { score: example.labels };
    if (!example.pairIds) return {};
    checkedIds(example.pairIds, tools.vocabSize, place);
    return { other: { kind: 'tokens', ids: example.pairIds, labels: undefined }, ...score };
  }
  if (example.kind !== 'labelled' || example.pair === undefined) return {};
  const score = example.label === undefined ? undefined : Number(example.label);
  if (score !== undefined && !Number.isFinite(score)) {
    throw new GraftError(
      'input',
      `the label of a pair is its similarity, and this is ${JSON.stringify(example.label)}`,
      {
        place,
      },
    );
  }
  return { other: { kind: 'text', text: example.pair }, ...(score !== undefined && { score }) };
}

export function embedding(head: TaskHead, { temperature = 0.05 }: TaskOptions): Task<Float32Array> {
  const rowOf = (example: Example, place: string, tools: RowTools) => {
    if (example.kind === 'image') return { row: imageRow(example, place, tools), cut: 0 };
    const { ids, types, cut } = textIds(example, head.name, place, tools);
    return { row: { ids, ...(types && { types }), labels: new Int32Array(), place }, cut };
  };
  const pairsIn = ({ rows }: Packed) => rows.flatMap((row, r) => (row.pair ? [{ row, r }] : []));

  return {
    head,
    together: true,

    rows(example, place, tools) {
      const { other, score } = second(example, place, tools);
      if (!other && tools.labelled) {
        throw new GraftError('input', 'the row has no second text', { place, hint: 'Give text and text_pair' });
      }
      const alone: Example = example.kind === 'labelled' ? { kind: 'text', text: example.text } : example;
      const first = rowOf(alone, place, tools);
      const pair = other && rowOf(other, place, tools);
      const row: Row = {
        ...first.row,
        example,
        ...(pair && { pair: pair.row }),
        ...(score !== undefined && { target: [score] }),
      };
      return { rows: [row], cut: first.cut + (pair?.cut ?? 0) };
    },

    units: (batch) => pairsIn(batch).length,

    lossSum(model, hidden, batch) {
      const raw = headOutput(model, hidden, batch);
      const length = ops.sqrt(ops.addScalar(ops.sumDim(ops.mul(raw, raw), [-1], true), 1e-24));
      const vectors = ops.div(raw, length);
      const pick = (rows: readonly number[]) =>
        ops.indexSelect(vectors, 0, Tensor.from(BigInt64Array.from(rows, BigInt)));
      const pairs = pairsIn(batch);
      const losses: Tensor[] = [];
      const free = pairs.filter(({ row }) => !row.target).map(({ r }) => r);
      if (free.length > 0) {
        const cosines = ops.matmul(pick(free), ops.t(pick(free.map((r) => r + 1))));
        const own = [...free.keys()];
        losses.push(
          weightedCrossEntropy(
            ops.divScalar(cosines, temperature),
            own,
            own.map(() => 1),
          ),
        );
      }
      const scored = pairs.filter(({ row }) => row.target);
      if (scored.length > 0) {
        const at = scored.map(({ r }) => r);
        const cosines = ops.sumDim(ops.mul(pick(at), pick(at.map((r) => r + 1))), [-1]);
        const wanted = scored.map(({ row }) => row.target![0]!);
        const miss = ops.sub(cosines, Tensor.from(wanted, cosines.shape, cosines.dtype));
        losses.push(ops.sum(ops.mul(miss, miss)));
      }
      return losses.reduce((a, b) => ops.add(a, b));
    },

    outputs: (model, hidden, batch) => rowsOfNumbers(headOutput(model, hidden, batch)),

    metrics(rows, said) {
      const scored = rows.filter(({ target }) => target);
      const free = rows.filter(({ target }) => !target);
      const metrics: Metric[] = [];
      if (scored.length > 0) {
        const cosines = scored.map((row) => cosine(said(row), said(row.pair!)));
        metrics.push(
          ...correlations(
            scored.map(({ target }) => target![0]!),
            cosines,
            'pairs',
          ),
        );
      }
      if (free.length > 0) {
        const others = free.map(({ pair }) => said(pair!));
        const right = free.filter((row, i) => {
          let best = 0;
          const near = others.map((other) => cosine(said(row), other));
          near.forEach((value, at) => {
            if (value > near[best]! || (value === near[best]! && at === i)) best = at;
          });
          // Several rows may have the same second text.
          return best === i || String(free[best]!.pair!.ids) === String(row.pair!.ids);
        }).length;
        metrics.push({ name: 'nearest_is_own', ...wilson(right, free.length), count: free.length, of: 'pairs' });
      }
      return { metrics };
    },

    prediction([row], said) {
      const vector = Array.from(said(row!));
      if (!row!.pair) return { embedding: vector };
      return {
        similarity: cosine(said(row!), said(row!.pair)),
        embedding: vector,
        embedding_pair: Array.from(said(row!.pair)),
      };
    },
  };
}
