/**
 * Classification of texts and of pairs of texts: one class of several (cross-entropy, with class weights), several classes
 * at a time (binary cross-entropy of each), or a number (squared error) where the head has one label. Conversations and
 * completions are supported too: their answer is the label, and the head reads the token before it. Losses and their means
 * are those of transformers' `…ForSequenceClassification`; a weighted mean divides by the sum of the weights, as in PyTorch.
 */
import type { TaskHead } from '../nn/index.ts';
import { classificationTask, requireLabel, targetOf } from './classification.ts';
import { labelOf } from './labels.ts';
import type { Task, TaskOptions } from './task.ts';
import { promptIds, textIds } from './text-rows.ts';

export const sequenceClassification = (head: TaskHead, options: TaskOptions): Task<Float32Array> => ({
  ...classificationTask(head, options),

  rows(example, place, tools) {
    const { ids, types, cutTokens } = promptIds(example, place, tools) ?? textIds(example, head.name, place, tools);
    if (ids.length === 0) return { rows: [], cutTokens };
    const label = tools.labelled ? requireLabel(labelOf(example), place) : undefined;
    const target = label !== undefined && { target: targetOf(label, head, place, example.kind === 'tokens') };
    return { rows: [{ ids, ...(types && { types }), labels: new Int32Array(), place, example, ...target }], cutTokens };
  },
});
