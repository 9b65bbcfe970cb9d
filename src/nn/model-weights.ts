import type { DType, Tensor } from '../tensor/index.ts';
import type { Kernels } from './kernels.ts';
import { type Embedding, LayerNorm, type Linear, RmsNorm } from './layers.ts';

/**
 * The source of a model's weights while a family builds its modules: each call names a key of the checkpoint and the shape
 * that the config implies. Missing weights and wrong shapes are reported together when the model is complete.
 */
export interface ModelWeights {
  readonly kernels: Kernels;
  /** Element type of dense weights and of all activations. */
  readonly dtype: DType;
  /** Returns the linear layer of `path.weight` [out, in] and, where `bias` is set, `path.bias` [out]. */
  linear(path: string, outFeatures: number, inFeatures: number, bias?: boolean): Linear;
  /** Returns the embedding of `path.weight` [rows, width]. */
  embedding(path: string, rows: number, width: number): Embedding;
  /** As `linear` with a bias, from a file that stores the weight as [in, out] (GPT-2's Conv1D). */
  transposed(path: string, outFeatures: number, inFeatures: number): Linear;
  /**
   * As `linear`, but initialised (normal with standard deviation 0.02; bias 0) where the checkpoint has no such layer.
   * @param trained whether methods train it; the values of an untrained layer do not depend on the seed, since no adapter
   * stores it
   */
  head(path: string, outFeatures: number, inFeatures: number, bias?: boolean, trained?: boolean): Linear;
  /** Returns the tensor `key` of any shape, dense. */
  tensor(key: string, shape: readonly number[]): Tensor;
  /** Returns the tensor `key` [size], dense. */
  vector(key: string, size: number): Tensor;
  /**
   * Returns the output layer of a language model. A tied one shares the embedding's table, unless the checkpoint has a table
   * of its own for it, with other numbers (as transformers 5 decides it).
   * @param embeddingPath where the checkpoint has the table of `embedding`
   */
  lmHead(path: string, embeddingPath: string, embedding: Embedding, tied: boolean): Linear;
  /** Whether the checkpoint has the tensor `key`. */
  has(key: string): boolean;
  /** Names keys of the checkpoint that the model does not use, so that they are no error. */
  ignore(keys: RegExp): void;
  /** How many parameters were returned so far, tied ones once. */
  readonly parameters: number;
  /** Frees all weights that were returned. */
  release(): void;
}

/** Returns the layer norm of `path.weight` and `path.bias` [width]. */
export const layerNorm = (w: ModelWeights, path: string, width: number, eps: number): LayerNorm =>
  new LayerNorm(w.vector(`${path}.weight`, width), w.vector(`${path}.bias`, width), eps);

/** Returns the root-mean-square norm of `path.weight` [width]. */
export const rmsNorm = (w: ModelWeights, path: string, width: number, eps: number): RmsNorm =>
  new RmsNorm(w.kernels, w.vector(`${path}.weight`, width), eps);
