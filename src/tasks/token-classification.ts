/**
 * A class for each word (names, parts of speech): learned at the first piece of each word, as transformers' examples do.
 * The loss is the cross-entropy over those pieces, with class weights as in a classification of rows.
 */
import { GraftError } from '../base/index.ts';
import { checkedIds, checkedLabels, requireTokenizer } from '../data/index.ts';
import type { TaskHead } from '../nn/index.ts';
import { ops, Tensor } from '../tensor/index.ts';
import { classOf, weightsOf } from './labels.ts';
import { headOutput, weightedCrossEntropy } from './losses.ts';
import { bootstrap, confusionOf, macroF1, wilson } from './metrics.ts';
import { areChunks, chunkMetrics } from './spans.ts';
import type { ExampleRows, RowTools, Task, TaskOptions } from './task.ts';
import { unfit } from './text-rows.ts';

const none = -100;

export function tokenClassification(head: TaskHead, options: TaskOptions): Task<Int32Array> {
  const weights = weightsOf(head, options.classWeights);
  const count = head.labels.length;
  return {
    head,

    rows(example, place, tools) {
      const { rows, cut } = madeOf(example, place, tools);
      // What was cut off may have held all that there was to learn.
      return { rows: tools.labelled ? rows.filter(({ labels }) => labels.some((c) => c !== none)) : rows, cut };
    },

    units: ({ rows }) => rows.reduce((sum, { labels }) => sum + labels.reduce((s, c) => s + (weights[c] ?? 0), 0), 0),

    lossSum(model, hidden, { rows }) {
      const classes = rows.flatMap(({ labels }) => [...labels]);
      const at = [...classes.keys()].filter((i) => classes[i] !== none);
      const picked = ops.indexSelect(hidden, 0, Tensor.from(BigInt64Array.from(at, BigInt)));
      return weightedCrossEntropy(
        model.logits(picked, [0, at.length]),
        at.map((i) => classes[i]!),
        weights,
      );
    },

    outputs(model, hidden, batch) {
      const best = ops.argmax(headOutput(model, hidden, batch), -1).data() as BigInt64Array;
      return batch.rows.map((_, r) =>
        Int32Array.from(best.subarray(batch.rowStarts[r]!, batch.rowStarts[r + 1]!), Number),
      );
    },

    metrics(rows, said) {
      const pairs = rows.map((row) => {
        const at = [...row.labels.keys()].filter((i) => row.labels[i] !== none);
        const answer = said(row);
        return { wanted: at.map((i) => row.labels[i]!), said: at.map((i) => answer[i]!) };
      });
      const [wanted, told] = [pairs.flatMap((p) => p.wanted), pairs.flatMap((p) => p.said)];
      const right = wanted.filter((c, i) => c === told[i]).length;
      const names = (classes: readonly number[]) => classes.map((c) => head.labels[c]!);
      const macro = (places: readonly number[]) => {
        const [w, s] = [places.flatMap((r) => pairs[r]!.wanted), places.flatMap((r) => pairs[r]!.said)];
        return macroF1(confusionOf(w, s, count));
      };
      const metrics = areChunks(head.labels)
        ? chunkMetrics(
            pairs.map((p) => names(p.wanted)),
            pairs.map((p) => names(p.said)),
          )
        : [{ name: 'f1_macro', ...bootstrap(pairs.length, macro), count: wanted.length, of: 'tokens' as const }];
      return {
        metrics: [
          ...metrics,
          { name: 'accuracy', ...wilson(right, wanted.length), count: wanted.length, of: 'tokens' },
        ],
        confusion: { labels: head.labels, counts: confusionOf(wanted, told, count) },
      };
    },

    prediction([row], said) {
      const answer = said(row!);
      const { example, words } = row!;
      if (example?.kind !== 'tags') return { tags: Array.from(answer, (c) => head.labels[c]!) };
      // A word that was cut off, or that has no pieces, has no tag.
      const tags: (string | null)[] = example.words.map(() => null);
      words!.forEach((word, i) => {
        if (word >= 0) tags[word] ??= head.labels[answer[i]!]!;
      });
      return { tags };
    },
  };

  function madeOf(example: Parameters<Task['rows']>[0], place: string, tools: RowTools): ExampleRows {
    if (example.kind === 'tokens') {
      const ids = checkedIds(example.ids, tools.vocabSize, place);
      if (example.labels === undefined && tools.labelled)
        throw new GraftError('input', 'the row has no labels', { place });
      const labels = checkedLabels(
        example.labels ?? Array.from(ids, () => none),
        ids.length,
        count,
        place,
        `the ${count} labels`,
      );
      const kept = ids.subarray(0, tools.maxLength);
      const types = example.types && { types: Int32Array.from(example.types).subarray(0, kept.length) };
      const row = { ids: kept, labels: labels.subarray(0, kept.length), place, example, ...types };
      return { rows: [row], cut: ids.length - kept.length };
    }
    if (example.kind !== 'tags') throw unfit(example, head.name, 'tokens and tags, or ids and labels', place);
    const { words, tags } = example;
    if (!tags && tools.labelled) throw new GraftError('input', 'the row has no tags', { place });
    if (tags && tags.length !== words.length) {
      throw new GraftError('input', `${words.length} tokens have ${tags.length} tags`, { place });
    }
    const tokenizer = requireTokenizer(tools.tokenizer, place);
    const ofWords = tokenizer.forWords();
    const pieces = words.map((word) => ofWords.encode(word, { addSpecialTokens: false }));
    const flat = pieces.flatMap((piece) => [...piece]);
    const of = pieces.flatMap((piece, w) => Array.from(piece, () => w));
    const room = Math.max(0, tools.maxLength - tokenizer.withSpecialTokens([]).ids.length);
    const { ids, starts } = tokenizer.withSpecialTokens(flat.slice(0, room));
    checkedIds([...ids], tools.vocabSize, place);
    const wordAt = new Int32Array(ids.length).fill(-1);
    const labels = new Int32Array(ids.length).fill(none);
    for (let i = 0; i < Math.min(room, flat.length); i++) {
      wordAt[starts[0]! + i] = of[i]!;
      if (tags && of[i] !== of[i - 1]) labels[starts[0]! + i] = classOf(tags[of[i]!]!, head, place);
    }
    return { rows: [{ ids, labels, place, example, words: wordAt }], cut: Math.max(0, flat.length - room) };
  }
}
