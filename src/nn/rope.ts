import { GraftError } from '../base/index.ts';
import { type DType, detachFromScopes, ops, Tensor } from '../tensor/index.ts';

/** How a checkpoint scales its rotary positions to longer contexts (names: transformers `modeling_rope_utils.py`). */
export type RopeScaling =
  | { readonly type: 'default' }
  | { readonly type: 'linear'; readonly factor: number }
  | {
      readonly type: 'llama3';
      readonly factor: number;
      readonly lowFreqFactor: number;
      readonly highFreqFactor: number;
      readonly originalContext: number;
    }
  /** One divisor for each frequency, which GGUF stores instead of llama3's parameters. */
  | { readonly type: 'divisors'; readonly divisors: readonly number[] };

/** The parameters of rotary position embeddings (arXiv 2104.09864). */
interface Rope {
  readonly theta: number;
  readonly scaling: RopeScaling;
}

/**
 * Reads theta and scaling from a `config.json`: from `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling`.
 * @throws GraftError 'input' for an unsupported kind of scaling, or a missing parameter
 */
export function parseRope(config: {
  readonly rope_theta?: number | null | undefined;
  readonly rope_scaling?: Readonly<Record<string, unknown>> | null | undefined;
  readonly rope_parameters?: Readonly<Record<string, unknown>> | null | undefined;
}): Rope {
  const parameters = config.rope_parameters ?? config.rope_scaling ?? {};
  const number = (key: string): number => {
    const value = parameters[key];
    if (typeof value !== 'number') throw new GraftError('input', `the rope parameter '${key}' is missing`);
    return value;
  };
  const theta = typeof parameters.rope_theta === 'number' ? parameters.rope_theta : (config.rope_theta ?? 10_000);
  const type = String(parameters.rope_type ?? parameters.type ?? 'default');
  switch (type) {
    case 'default':
      return { theta, scaling: { type } };
    case 'linear':
      return { theta, scaling: { type, factor: number('factor') } };
    case 'divisors':
      return { theta, scaling: { type, divisors: parameters.divisors as number[] } };
    case 'llama3':
      return {
        theta,
        scaling: {
          type,
          factor: number('factor'),
          lowFreqFactor: number('low_freq_factor'),
          highFreqFactor: number('high_freq_factor'),
          originalContext: number('original_max_position_embeddings'),
        },
      };
    default:
      throw new GraftError('input', `rope scaling of type '${type}' is not supported (default, linear and llama3 are)`);
  }
}

const f = Math.fround;

/** Returns the rotation angle per position of each pair of dimensions [dim / 2], in float32 as transformers computes it. */
export function ropeFrequencies(dim: number, { theta, scaling }: Rope): Float32Array {
  const frequencies = Float32Array.from({ length: dim / 2 }, (_, i) => 1 / f(theta ** f((2 * i) / dim)));
  switch (scaling.type) {
    case 'default':
      return frequencies;
    case 'linear':
      return frequencies.map((w) => w / scaling.factor);
    case 'divisors':
      return frequencies.map((w, i) => w / scaling.divisors[i]!);
    case 'llama3':
      return frequencies.map((w) => {
        const { factor, lowFreqFactor: low, highFreqFactor: high, originalContext } = scaling;
        const wavelength = (2 * Math.PI) / w;
        if (wavelength < originalContext / high) return w;
        if (wavelength > originalContext / low) return w / factor;
        const smooth = (originalContext / wavelength - low) / (high - low);
        return (1 - smooth) * (w / factor) + smooth * w;
      });
  }
}

/** A table of the cosines and sines of positions, which grows when a later position is asked for. */
export class RopeTable {
  readonly #frequencies: Float32Array;
  readonly #dtype: DType;
  #length = 0;
  #cos: Tensor | undefined;
  #sin: Tensor | undefined;

  constructor(frequencies: Float32Array, dtype: DType) {
    this.#frequencies = frequencies;
    this.#dtype = dtype;
  }

  /** Returns cos and sin [N, dim / 2] for positions int64 [N], all below `length`. */
  at(positions: Tensor, length: number): [Tensor, Tensor] {
    if (length > this.#length) this.#grow(Math.max(length, 2 * this.#length, 256));
    return [ops.indexSelect(this.#cos!, 0, positions), ops.indexSelect(this.#sin!, 0, positions)];
  }

  #grow(length: number): void {
    const half = this.#frequencies.length;
    // The product is rounded to float32 before the cosine, as in transformers: at position 8,000 it matters.
    const table = (of: (angle: number) => number) => {
      const values = new Float32Array(length * half);
      for (let p = 0; p < length; p++) {
        for (let i = 0; i < half; i++) values[p * half + i] = of(f(p * this.#frequencies[i]!));
      }
      const tensor = Tensor.from(values, [length, half]);
      return detachFromScopes(this.#dtype === 'float32' ? tensor : ops.toCopy(tensor, { dtype: this.#dtype }));
    };
    this.dispose();
    this.#cos = table(Math.cos);
    this.#sin = table(Math.sin);
    this.#length = length;
  }

  dispose(): void {
    this.#cos?.dispose();
    this.#sin?.dispose();
    this.#length = 0;
  }
}
