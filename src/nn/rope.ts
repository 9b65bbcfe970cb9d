import { GraftError } from '../base/index.ts';
import { type DType, detachFromScopes, ops, Tensor } from '../tensor/index.ts';

/** How a checkpoint stretches its positions (transformers `modeling_rope_utils.py` has the names). */
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
  /** GGUF stores llama3's result instead of its parameters: one divisor for each frequency. */
  | { readonly type: 'divisors'; readonly divisors: readonly number[] };

/** How positions turn queries and keys. */
interface Rope {
  readonly theta: number;
  readonly scaling: RopeScaling;
}

/**
 * Theta and scaling out of a `config.json`: under `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling`.
 * @throws GraftError 'input' for a kind of scaling that is not known, or a parameter that is missing
 */
export function parseRope(config: {
  readonly rope_theta?: number | null | undefined;
  readonly rope_scaling?: Readonly<Record<string, unknown>> | null | undefined;
  readonly rope_parameters?: Readonly<Record<string, unknown>> | null | undefined;
}): Rope {
  const wrong = (problem: string) => new GraftError('input', problem);
  const given = config.rope_parameters ?? config.rope_scaling ?? {};
  const number = (key: string): number => {
    const value = given[key];
    if (typeof value !== 'number') throw wrong(`the rope parameter '${key}' is missing`);
    return value;
  };
  const theta = typeof given.rope_theta === 'number' ? given.rope_theta : (config.rope_theta ?? 10_000);
  const type = String(given.rope_type ?? given.type ?? 'default');
  switch (type) {
    case 'default':
      return { theta, scaling: { type } };
    case 'linear':
      return { theta, scaling: { type, factor: number('factor') } };
    case 'divisors':
      return { theta, scaling: { type, divisors: given.divisors as number[] } };
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
      throw wrong(`rope scaling of type '${type}' is not supported (default, linear and llama3 are)`);
  }
}

const f = Math.fround;

/** The angle that each pair of dimensions turns by for one position, float32 as transformers computes it: [dim / 2]. */
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

/** cos and sin of every position, made as far as positions have been asked for. */
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

  /** cos and sin [N, dim / 2] for positions int64 [N], all below `length`. */
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
