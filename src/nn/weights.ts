import type { DType, Tensor } from '../tensor/index.ts';
import type { Kernels } from './kernels.ts';
import type { Embedding, Linear } from './layers.ts';

/**
 * What a family asks for while it builds itself: each call names the checkpoint's key and the shape that the config
 * implies. All that is missing or misshapen is reported together when the model is complete.
 */
export interface Weights {
  readonly kernels: Kernels;
  /** Of the dense weights and of all activations. */
  readonly dtype: DType;
  /** `path.weight` [out, in], and `path.bias` [out] where `bias` is set. */
  linear(path: string, outFeatures: number, inFeatures: number, bias?: boolean): Linear;
  /** `path.weight` [rows, width] */
  embedding(path: string, rows: number, width: number): Embedding;
  /** The tensor `key` [size] as float32. */
  vector(key: string, size: number): Tensor;
  /** An output projection that shares the embedding's table. */
  tied(path: string, embedding: Embedding): Linear;
  has(key: string): boolean;
  /** Numbers handed out so far, tied ones once. */
  readonly parameters: number;
  /** Frees all that was handed out. */
  release(): void;
}
