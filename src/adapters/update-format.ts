/** The updates of layers that an adapter makes, whatever its format: what conversion reads and writes. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import { type TensorToWrite, type WeightSource, writeSafetensors } from '../io/index.ts';
import type { HeadOptions } from '../models/index.ts';
import type { DType } from '../tensor/index.ts';
import { type Matrix, readMatrix } from './matrix.ts';
import { pythonJson } from './python-json.ts';

/** An update of low rank of one layer: W + scaling·BA, A [r, in], B [out, r]. */
export interface LowRankUpdate {
  readonly a: Matrix;
  readonly b: Matrix;
  readonly scaling: number;
}

/** The contents of an adapter. Layers are by their paths in the Hugging Face model. */
export type AdapterUpdates = {
  /** Path or id of the base model. */
  readonly base: string | undefined;
  /** Dropout probability of the updates' input. */
  readonly dropout: number;
  /** The task's head by the keys of its model: `classifier.weight`, `classifier.bias`. */
  readonly head: readonly TensorToWrite[];
} & (
  | { readonly kind: 'lora'; readonly layers: ReadonlyMap<string, LowRankUpdate> }
  /** Factors [out, 1] of what a layer returns. */
  | { readonly kind: 'ia3'; readonly layers: ReadonlyMap<string, Matrix> }
);

/** One format of adapters that can be converted. */
export interface UpdateFormat {
  /** Whether a directory is in this format, judged by its contents. */
  holds(dir: string): boolean;
  /**
   * @param base path of the base model, for formats that depend on it
   * @throws GraftError 'usage' with the reason where no other format supports what the adapter does
   */
  read(dir: string, base?: string): AdapterUpdates;
  /** Whether an adapter is one file. */
  readonly isFile?: boolean;
  /** Whether it depends on the config of the base. */
  readonly readsBase?: boolean;
  /**
   * Writes the updates into the empty directory `work`, or to the file of that path.
   * @throws GraftError 'usage' with the reason where the format does not support them
   */
  write(updates: AdapterUpdates, work: string, options: WriteOptions): void;
}

export interface WriteOptions {
  /** The adapter's name, where the format has names. */
  readonly name: string;
  /** Directory of the adapter that is converted, for errors. */
  readonly source: string;
  /** Task and labels of the head, where the adapter has one. */
  readonly head: HeadOptions;
  /** Path of the base model, for formats that depend on it. Default: the adapter's. */
  readonly base?: string | undefined;
}

/** The error for an adapter that cannot be converted. @param source its directory */
export const notConvertible = (why: string, source: string, hint?: string) =>
  new GraftError('usage', why, { place: source, ...(hint && { hint }) });

/** The error for prefix tuning, which PEFT and AdapterHub compute differently. */
export const prefixNotConvertible = (source: string) =>
  notConvertible(
    'PEFT counts the positions of a text after its prefix and AdapterHub from 0, so the same prefix acts differently',
    source,
  );

/** A tensor's part in the update of the layer at `path`. */
export interface UpdatePart {
  readonly path: string;
  readonly part: 'a' | 'b' | 'factors';
}

/** The matrices of a file by the layer that they update. */
export interface UpdateMatrices {
  readonly pairs: ReadonlyMap<string, { readonly a?: Matrix; readonly b?: Matrix }>;
  readonly factors: ReadonlyMap<string, Matrix>;
}

/**
 * Reads the tensors `names` of a file.
 * @param partOf the part of an update that a tensor is; undefined: none that conversion knows
 * @throws GraftError 'usage' for a tensor that is not a part of an update
 */
export function readUpdates(
  source: WeightSource,
  names: Iterable<string>,
  dir: string,
  partOf: (name: string) => UpdatePart | undefined,
): UpdateMatrices {
  const pairs = new Map<string, { a?: Matrix; b?: Matrix }>();
  const factors = new Map<string, Matrix>();
  for (const name of names) {
    const found = partOf(name);
    if (!found) throw notConvertible(`no other format supports the tensor ${name}`, dir);
    const matrix = readMatrix(source, name);
    if (found.part === 'factors') factors.set(found.path, matrix);
    else pairs.set(found.path, { ...pairs.get(found.path), [found.part]: matrix });
  }
  return { pairs, factors };
}

/** Low-rank updates from their matrices. @throws GraftError 'input' where A or B is missing or of another rank */
export function lowRankUpdates(
  pairs: UpdateMatrices['pairs'],
  scaling: (path: string, rank: number) => number,
  dir: string,
): Map<string, LowRankUpdate> {
  const layers = new Map<string, LowRankUpdate>();
  for (const [path, { a, b }] of pairs) {
    if (!a || !b || a.rows !== b.columns) {
      throw new GraftError('input', `the update of ${path} is incomplete: it needs A [r, in] and B [out, r]`, {
        place: dir,
      });
    }
    layers.set(path, { a, b, scaling: scaling(path, a.rows) });
  }
  if (layers.size === 0) throw new GraftError('input', 'the adapter holds no updates', { place: dir });
  return layers;
}

/** Updates of one rank and one scaling: lower ranks are padded with zeros, and B absorbs other scalings. */
export function withOneRank(layers: ReadonlyMap<string, LowRankUpdate>): {
  rank: number;
  scaling: number;
  layers: Map<string, LowRankUpdate>;
} {
  const [{ scaling }] = layers.values() as unknown as [LowRankUpdate];
  const rank = Math.max(...[...layers.values()].map(({ a }) => a.rows));
  const padded = [...layers].map(([path, { a, b, scaling: layerScaling }]): [string, LowRankUpdate] => {
    const bValues = new Float32Array(b.rows * rank);
    for (let row = 0; row < b.rows; row++) {
      for (let column = 0; column < b.columns; column++)
        bValues[row * rank + column] = (b.values[row * b.columns + column]! * layerScaling) / scaling;
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

/** A matrix as an entry of a file. */
export const matrixToWrite = (name: string, { rows, columns, values }: Matrix): TensorToWrite => ({
  name,
  dtype: 'float32',
  shape: [rows, columns],
  bytes: () => new Uint8Array(values.buffer, values.byteOffset, values.byteLength),
});

/** A stored tensor, unchanged, as an entry of another file under another name. */
export function storedToWrite(source: WeightSource, stored: string, name: string): TensorToWrite {
  const { shape, format, bytes } = source.entries.get(stored)!;
  const content = new Uint8Array(bytes);
  source.read(stored, content);
  return { name, dtype: format as DType, shape, bytes: () => content };
}

/** Writes `adapter_config.json`, and the file of weights next to it. */
export function writeUpdateFiles(
  work: string,
  config: Record<string, unknown>,
  weightFile: string,
  tensors: Iterable<TensorToWrite>,
  metadata?: Record<string, string>,
): void {
  writeFileSync(join(work, 'adapter_config.json'), pythonJson(config));
  writeSafetensors(join(work, weightFile), tensors, metadata);
}

export const numberOr = (value: unknown, fallback: number): number => (typeof value === 'number' ? value : fallback);

export const stringIn = (value: unknown): string | undefined => (typeof value === 'string' ? value : undefined);
