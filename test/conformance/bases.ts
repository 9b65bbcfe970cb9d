/** The models that methods are tested on: of the Llama family, dense and quantised, and one for every other family and task. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { pack, type Row } from '../../src/data/index.ts';
import { type LoadOptions, loadModel, type Quantize } from '../../src/models/index.ts';
import type { Model, TaskName } from '../../src/nn/index.ts';
import type { MicroBatch } from '../../src/train/index.ts';
import { randomLlama } from '../samples/llama.ts';
import { golden, temporary } from '../support.ts';

/** A model that methods are attached to. */
export interface Base {
  readonly name: string;
  /** True: its linear layers and embeddings are quantised. */
  readonly packed: boolean;
  /** @param options the model's own, such as `shapesOnly` */
  load(options?: LoadOptions): Model;
  /** Rows that it can learn. */
  batch(model: Model, seed?: number): MicroBatch;
}

/** Three rows of random ids; the first half of each has no labels. */
function tokens(model: Model, seed = 0): MicroBatch {
  let at = 0;
  const rows = [13, 2, 7].map((length) => {
    const next = () => ((at + 1) * 7919 + seed * 104729 + at * at++) % model.vocabSize;
    const ids = Int32Array.from({ length }, next);
    return { ids, labels: ids.map((id, i) => (i < length / 2 ? -100 : id)), place: 'test' };
  });
  return pack(rows);
}

const decoder = (file: string, quantize: Quantize = 'none'): Base => ({
  name: quantize === 'none' ? file : `${file} ${quantize}`,
  packed: quantize !== 'none',
  load: (options) => loadModel(golden(...file.split('/')), { ...options, quantize }),
  batch: tokens,
});

const wideDir = temporary();
process.on('exit', () => wideDir[Symbol.dispose]());

/** A small Llama with random weights whose widths are multiples of 64, as nf4 needs. */
const wide: Base = {
  name: 'a wide llama nf4',
  packed: true,
  batch: tokens,
  load(options) {
    const dir = join(wideDir.path, 'wide');
    if (!existsSync(dir)) randomLlama(dir, { width: 64, inner: 128, layers: 2 });
    return loadModel(dir, { ...options, quantize: 'nf4' });
  },
};

export const bases: readonly Base[] = [
  ...['llama2', 'llama3', 'llama-linear', 'mistral', 'qwen2', 'qwen3'].map((name) => decoder(`models/${name}`)),
  ...['llama', 'qwen2'].flatMap((name) => [decoder(`gguf/${name}.gguf`, 'keep'), decoder(`gguf/${name}.gguf`, 'int8')]),
  wide,
];

/** Bases that cannot be quantised so, with the error. */
export const refusedBases: readonly { base: Base; why: RegExp }[] = [
  { base: decoder('models/llama2', 'int8'), why: /down_proj\.weight is 44 wide, and int8 needs a multiple of 32/ },
  { base: decoder('models/qwen2', 'int8'), why: /embed_tokens\.weight is 40 wide, and int8 needs a multiple of 32/ },
  { base: decoder('models/llama3', 'nf4'), why: /embed_tokens\.weight is 32 wide, and nf4 needs a multiple of 64/ },
];

const none = new Int32Array();

/** Adds the labels of its task to a row. */
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
  load: (options) => loadModel(golden('families', name), { ...options, ...(task && { task, seed: 1 }) }),
  batch: rowsFor,
});

export const familyBases: readonly Base[] = [
  ...['gpt2', 'gpt2-scaled', 'gpt2-seqcls', 'gpt2-tokcls', 'gpt2-qa'].map((name) => base(name)),
  ...['bert-seqcls', 'bert-regression', 'bert-tokcls', 'bert-qa'].map((name) => base(name)),
  ...['roberta-seqcls', 'roberta-tokcls', 'distilbert-seqcls', 'distilbert-tokcls'].map((name) => base(name)),
  ...['gpt-neox', 'gpt-neox-serial', 'gpt-neox-seqcls', 'gpt-neox-tokcls', 'gpt-neox-qa'].map((name) => base(name)),
  ...['vit', 'vit-small', 'deit', 'deit-teacher'].map((name) => base(name)),
  ...['llama-seqcls', 'llama-tokcls', 'llama-qa'].map((name) => base(name)),
  base('bert-tokcls', 'embedding'),
  base('gpt2', 'embedding'),
  base('gpt-neox', 'embedding'),
];
