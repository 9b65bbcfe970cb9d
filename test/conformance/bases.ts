/** A base for every family and task that the methods go on, and rows that it can learn. */
import { pack, type Row } from '../../src/data/index.ts';
import { loadModel } from '../../src/models/index.ts';
import type { Model, TaskName } from '../../src/nn/index.ts';
import type { MicroBatch } from '../../src/train/index.ts';
import { golden } from '../support.ts';
import type { Base } from './cases.ts';

const none = new Int32Array();

/** Labels of a row by what its head says. */
const labelled: Readonly<Record<TaskName, (row: Row, classes: number, r: number) => Row>> = {
  'causal-lm': (row) => ({ ...row, labels: row.ids.map((id, i) => (i < row.ids.length / 2 ? -100 : id)) }),
  'sequence-classification': (row, classes, r) => ({ ...row, target: [classes === 1 ? r - 0.5 : r % classes] }),
  'image-classification': (row, classes, r) => ({ ...row, target: [r % classes] }),
  'token-classification': (row, classes) => ({ ...row, labels: row.ids.map((_, i) => (i === 1 ? -100 : i % classes)) }),
  'question-answering': (row) => ({ ...row, target: [row.ids.length >> 2, row.ids.length >> 1] }),
  embedding: (row) => ({ ...row, pair: { ...row, ids: row.ids.map((id) => id ^ 1) } }),
};

/** Three rows of random ids, or three images. */
export function rowsFor(model: Model, seed = 0): MicroBatch {
  const { image, task, vocabSize } = model;
  let at = 0;
  const number = () => (at + 1) * 7919 + seed * 104729 + at * at++;
  const rows = [13, 2, 7].map((length, r): Row => {
    if (!image) {
      const row = { ids: Int32Array.from({ length }, () => number() % vocabSize), labels: none, place: 'test' };
      return labelled[task.name](row, task.labels.length, r);
    }
    const size = image.channels * image.height * image.width;
    const pixels = Float32Array.from({ length: size }, () => (number() % 101) / 50 - 1);
    const row = { ids: new Int32Array(image.tokens), labels: none, place: 'test', pixels: () => pixels };
    return labelled[task.name](row, task.labels.length, r);
  });
  return pack(rows);
}

const base = (name: string, task?: TaskName): Base => ({
  name: task ? `${name} for ${task}` : name,
  packed: false,
  load: () => loadModel(golden('families', name), task ? { task, seed: 1 } : {}),
  batch: rowsFor,
});

export const familyBases: readonly Base[] = [
  ...['gpt2', 'gpt2-scaled', 'gpt2-seqcls', 'gpt2-tokcls', 'gpt2-qa'].map((name) => base(name)),
  ...['bert-seqcls', 'bert-regression', 'bert-tokcls', 'bert-qa'].map((name) => base(name)),
  ...['roberta-seqcls', 'roberta-tokcls', 'distilbert-seqcls', 'distilbert-tokcls'].map((name) => base(name)),
  ...['vit', 'vit-small', 'deit'].map((name) => base(name)),
  ...['llama-seqcls', 'llama-tokcls', 'llama-qa'].map((name) => base(name)),
  base('bert-tokcls', 'embedding'),
  base('gpt2', 'embedding'),
];
