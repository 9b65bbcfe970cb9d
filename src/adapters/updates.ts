/** What an adapter of low rank says, whatever its format: what conversion reads into and writes from. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import { openSafetensors, openTorch, type TensorToWrite, type WeightSource } from '../io/index.ts';
import type { DType } from '../tensor/index.ts';
import type { Matrix } from './matrix.ts';

/** An update of one layer: W + scaling·BA, A [r, in], B [out, r]; paths are those of the Hugging Face model. */
export interface Update {
  readonly a: Matrix;
  readonly b: Matrix;
  readonly scaling: number;
}

/** What an adapter says, whatever the format. */
export type AdapterUpdates = {
  readonly base: string | undefined;
  readonly dropout: number;
  /** The task's head by the keys of its model: `classifier.weight`, `classifier.bias`. */
  readonly head: readonly TensorToWrite[];
} & (
  | { readonly kind: 'lora'; readonly layers: ReadonlyMap<string, Update> }
  /** Factors [out] of what a layer gives. */
  | { readonly kind: 'ia3'; readonly layers: ReadonlyMap<string, Matrix> }
);

/** One format of adapters. */
export interface UpdateFormat {
  /** @throws GraftError 'usage' with the reason where it says what no other format can say */
  read(dir: string): AdapterUpdates;
  /**
   * Fills the empty directory `work`.
   * @param place where the adapter came from, for errors
   * @param name what it is to be called, where the format has names
   * @throws GraftError 'usage' with the reason where the format has no place for it
   */
  write(said: AdapterUpdates, work: string, place: string, name: string): void;
}

export const notConvertible = (why: string, place: string, hint?: string) =>
  new GraftError('usage', why, { place, ...(hint && { hint }) });

export function openOne(dir: string, ...names: string[]): WeightSource {
  const name = names.find((file) => existsSync(join(dir, file)));
  if (!name) throw new GraftError('input', `the adapter has no ${names.join(' and no ')}`, { place: dir });
  return name.endsWith('.bin') ? openTorch(join(dir, name)) : openSafetensors(join(dir, name));
}

export type Pairs = Map<string, { a?: Matrix; b?: Matrix }>;

export const half = (pairs: Pairs, path: string) => {
  const found = pairs.get(path) ?? {};
  pairs.set(path, found);
  return found;
};

export function whole(
  pairs: Pairs,
  scaling: (path: string, rank: number) => number,
  place: string,
): Map<string, Update> {
  const layers = new Map<string, Update>();
  for (const [path, { a, b }] of pairs) {
    if (!a || !b || a.rows !== b.columns) {
      throw new GraftError('input', `the update of ${path} is not whole`, { place });
    }
    layers.set(path, { a, b, scaling: scaling(path, a.rows) });
  }
  if (layers.size === 0) throw new GraftError('input', 'the adapter holds no update', { place });
  return layers;
}

export const numberOf = (value: unknown, otherwise: number) => (typeof value === 'number' ? value : otherwise);

export const tensorOf = (name: string, { rows, columns, values }: Matrix) => ({
  name,
  dtype: 'float32' as const,
  shape: [rows, columns],
  bytes: () => new Uint8Array(values.buffer, values.byteOffset, values.byteLength),
});

/** Updates under one rank and one scaling: zeros fill up lower ranks, and B takes what scalings differ by. */
export function alike(layers: ReadonlyMap<string, Update>): {
  rank: number;
  scaling: number;
  layers: Map<string, Update>;
} {
  const [first] = layers.values() as unknown as [Update];
  const rank = Math.max(...[...layers.values()].map(({ a }) => a.rows));
  const { scaling } = first;
  const padded = [...layers].map(([path, { a, b, scaling: own }]): [string, Update] => {
    const bValues = new Float32Array(b.rows * rank);
    for (let row = 0; row < b.rows; row++) {
      for (let c = 0; c < b.columns; c++) bValues[row * rank + c] = (b.values[row * b.columns + c]! * own) / scaling;
    }
    const aValues = new Float32Array(rank * a.columns);
    aValues.set(a.values);
    return [
      path,
      { a: { ...a, rows: rank, values: aValues }, b: { rows: b.rows, columns: rank, values: bValues }, scaling },
    ];
  });
  return { rank, scaling, layers: new Map(padded) };
}

/** Whether a key of a model is of its task's head. */
export const isHead = (key: string): boolean => /^(pre_classifier|classifier|score|qa_outputs)\./.test(key);

/** A stored tensor as it is, under another name. */
export function kept(source: WeightSource, stored: string, name: string): TensorToWrite {
  const { shape, format, bytes } = source.entries.get(stored)!;
  const into = new Uint8Array(bytes);
  source.read(stored, into);
  return { name, dtype: format as DType, shape, bytes: () => into };
}
