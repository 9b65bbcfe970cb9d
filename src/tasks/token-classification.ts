/**
 * A class for each word (named entities, parts of speech), learned at the first token of each word, as in transformers' examples.
 * The loss is the cross-entropy over those tokens, with class weights as in a classification of rows.
 */
import { GraftError } from '../base/index.ts';
import { checkedIds, checkedLabels, type Example, keptTokens, requireTokenizer } from '../data/index.ts';
import type { TaskHead } from '../nn/index.ts';
import { ops, Tensor, widened } from '../tensor/index.ts';
import { areChunkTags, entityMetrics } from './entities.ts';
import { headOutput, weightedCrossEntropy } from './head-output.ts';
import { classOf, weightsOf } from './labels.ts';
import { bootstrap, confusionOf, type Metric, macroF1, wilson } from './metrics.ts';
import type { ExampleRows, RowTools, Task, TaskOptions } from './task.ts';
import { unsupportedRow } from './text-rows.ts';

/** The label of a token without one, as in PyTorch's cross-entropy. */
const IGNORED = -100;

export function tokenClassification(head: TaskHead, options: TaskOptions): Task<Int32Array> {
  const weights = weightsOf(head, options.classWeights);
  const count = head.labels.length;
  return {
    head,
    metricNames: [
      ...(areChunkTags(head.labels) ? ['f1_entities', 'precision_entities', 'recall_entities'] : ['f1_macro']),
      'accuracy',
    ],

    rows(example, place, tools) {
      const { rows, cutTokens } = rowsOf(example, place, tools);
      // Truncation may have removed every label.
      return {
        rows: tools.labelled ? rows.filter(({ labels }) => labels.some((c) => c !== IGNORED)) : rows,
        cutTokens,
      };
    },

    units: ({ rows }) => rows.reduce((sum, { labels }) => sum + labels.reduce((s, c) => s + (weights[c] ?? 0), 0), 0),

    lossSum(model, hidden, { rows }) {
      const classes = rows.flatMap(({ labels }) => [...labels]);
      const labelled = [...classes.keys()].filter((i) => classes[i] !== IGNORED);
      const labelledHidden = ops.indexSelect(hidden, 0, Tensor.from(BigInt64Array.from(labelled, BigInt)));
      return weightedCrossEntropy(
        widened(model.logits(labelledHidden, [0, labelled.length])),
        labelled.map((i) => classes[i]!),
        weights,
      );
    },

    outputs(model, hidden, batch) {
      const predicted = ops.argmax(headOutput(model, hidden, batch), -1).data() as BigInt64Array;
      return batch.rows.map((_, r) =>
        Int32Array.from(predicted.subarray(batch.rowStarts[r]!, batch.rowStarts[r + 1]!), Number),
      );
    },

    metrics(rows, classesOf) {
      const byRow = rows.map((row) => {
        const labelled = [...row.labels.keys()].filter((i) => row.labels[i] !== IGNORED);
        const predicted = classesOf(row);
        return { trueClasses: labelled.map((i) => row.labels[i]!), predicted: labelled.map((i) => predicted[i]!) };
      });
      const trueClasses = byRow.flatMap((row) => row.trueClasses);
      const predicted = byRow.flatMap((row) => row.predicted);
      const n = trueClasses.length;
      const correct = trueClasses.filter((c, i) => c === predicted[i]).length;
      const tagsOf = (classes: readonly number[]) => classes.map((c) => head.labels[c]!);
      const macro = (indices: readonly number[]) => {
        const resampledTrue = indices.flatMap((r) => byRow[r]!.trueClasses);
        const resampledPredicted = indices.flatMap((r) => byRow[r]!.predicted);
        return macroF1(confusionOf(resampledTrue, resampledPredicted, count));
      };
      const f1Metrics: Metric[] = areChunkTags(head.labels)
        ? entityMetrics(
            byRow.map((row) => tagsOf(row.trueClasses)),
            byRow.map((row) => tagsOf(row.predicted)),
          )
        : [{ name: 'f1_macro', ...bootstrap(byRow.length, macro), count: n, of: 'tokens' }];
      return {
        metrics: [...f1Metrics, { name: 'accuracy', ...wilson(correct, n), count: n, of: 'tokens' }],
        confusion: { labels: head.labels, counts: confusionOf(trueClasses, predicted, count) },
      };
    },

    prediction([row], classesOf) {
      const predicted = classesOf(row!);
      const { example, words } = row!;
      if (example?.kind !== 'tags') return { tags: Array.from(predicted, (c) => head.labels[c]!) };
      // A word that was truncated, or that has no tokens, has no tag.
      const tags: (string | null)[] = example.words.map(() => null);
      words!.forEach((word, i) => {
        if (word >= 0) tags[word] ??= head.labels[predicted[i]!]!;
      });
      return { tags };
    },
  };

  function rowsOf(example: Example, place: string, tools: RowTools): ExampleRows {
    if (example.kind === 'tokens') {
      const ids = checkedIds(example.ids, tools.vocabSize, place);
      if (example.labels === undefined && tools.labelled)
        throw new GraftError('input', 'the row has no labels', { place });
      const labels = checkedLabels(
        example.labels ?? Array.from(ids, () => IGNORED),
        ids.length,
        count,
        place,
        `the ${count} labels`,
      );
      const kept = keptTokens({ length: ids.length, room: tools.maxLength, truncate: tools.truncate ?? 'end' });
      const keptOf = (list: ArrayLike<number>) => Int32Array.from(kept, (i) => list[i]!);
      const types = example.types && { types: keptOf(example.types) };
      const row = { ids: keptOf(ids), labels: keptOf(labels), place, example, ...types };
      return { rows: [row], cutTokens: ids.length - kept.length };
    }
    if (example.kind !== 'tags')
      throw unsupportedRow(example, head.name, 'rows with tokens and tags, or ids and labels', place);
    const { words, tags } = example;
    if (!tags && tools.labelled) throw new GraftError('input', 'the row has no tags', { place });
    if (tags && tags.length !== words.length) {
      throw new GraftError('input', `${words.length} tokens have ${tags.length} tags`, { place });
    }
    const tokenizer = requireTokenizer(tools.tokenizer, place);
    const wordTokenizer = tokenizer.forWords();
    const idsByWord = words.map((word) => wordTokenizer.encode(word, { addSpecialTokens: false }));
    const allIds = idsByWord.flatMap((wordIds) => [...wordIds]);
    const wordOf = idsByWord.flatMap((wordIds, w) => Array.from(wordIds, () => w));
    const room = Math.max(0, tools.maxLength - tokenizer.withSpecialTokens([]).ids.length);
    const kept = keptTokens({ length: allIds.length, room, truncate: tools.truncate ?? 'end' });
    const { ids, starts } = tokenizer.withSpecialTokens(kept.map((i) => allIds[i]!));
    checkedIds([...ids], tools.vocabSize, place);
    const rowWords = new Int32Array(ids.length).fill(-1);
    const labels = new Int32Array(ids.length).fill(IGNORED);
    for (const [at, i] of kept.entries()) {
      rowWords[starts[0]! + at] = wordOf[i]!;
      if (tags && wordOf[i] !== wordOf[i - 1]) labels[starts[0]! + at] = classOf(tags[wordOf[i]!]!, head, place);
    }
    return { rows: [{ ids, labels, place, example, words: rowWords }], cutTokens: allIds.length - kept.length };
  }
}
