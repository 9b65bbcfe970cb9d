import type { DType, Tensor } from '../tensor/index.ts';
import type { Kernels } from './kernels.ts';
import { type Embedding, LayerNorm, type Linear, RmsNorm } from './layers.ts';

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
  /** As `linear`, from a file that stores the weight [in, out] (GPT-2's Conv1D). */
  transposed(path: string, outFeatures: number, inFeatures: number): Linear;
  /**
   * As `linear`, and made new (normal, 0.02; bias 0) where the checkpoint has none.
   * @param trained by default; what is not is in no adapter, and so has the same values whatever the seed
   */
  head(path: string, outFeatures: number, inFeatures: number, bias?: boolean, trained?: boolean): Linear;
  /** The tensor `key` of any shape, dense. */
  tensor(key: string, shape: readonly number[]): Tensor;
  /** The tensor `key` [size] as float32. */
  vector(key: string, size: number): Tensor;
  /** An output projection that shares the embedding's table. */
  tied(path: string, embedding: Embedding): Linear;
  has(key: string): boolean;
  /** Keys that this model has no use for. */
  ignore(keys: RegExp): void;
  /** Paths of heads that the checkpoint does not have. */
  readonly fresh: readonly string[];
  /** Numbers handed out so far, tied ones once. */
  readonly parameters: number;
  /** Frees all that was handed out. */
  release(): void;
}

/** The layer norm of `path.weight` and `path.bias` [width]. */
export const layerNorm = (w: Weights, path: string, width: number, eps: number): LayerNorm =>
  new LayerNorm(w.vector(`${path}.weight`, width), w.vector(`${path}.bias`, width), eps);

/** The root-mean-square norm of `path.weight` [width]. */
export const rmsNorm = (w: Weights, path: string, width: number, eps: number): RmsNorm =>
  new RmsNorm(w.kernels, w.vector(`${path}.weight`, width), eps);
