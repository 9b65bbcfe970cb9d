import { detachFromScopes, Generator, host, noGrad, ops, scope, Tensor, widened } from '../../tensor/index.ts';

/** Returns the tensor that `make` returns as a trainable parameter: it outlives every scope, and gradients are kept for it. */
export function trainable(make: () => Tensor): Tensor {
  return noGrad(() => {
    using s = scope();
    const tensor = detachFromScopes(s.keep(widened(make())));
    tensor.requiresGrad = true;
    return tensor;
  });
}

/** Returns a matrix [size, size] with 1 on the diagonal and `offDiagonal` elsewhere. */
export function identity(size: number, offDiagonal = 0): Tensor {
  const values = new Float32Array(size * size).fill(offDiagonal);
  for (let i = 0; i < size; i++) values[i * (size + 1)] = 1;
  return Tensor.from(values, [size, size]);
}

/** Trainable float32 parameters, whose initial values are drawn one after another from one seed. */
export class ParameterInit implements Disposable {
  readonly #generator: Generator | undefined;
  readonly #parameters: Tensor[] = [];

  /** @param loading saved values follow, or only shapes matter, so no random ones are drawn: all are 0, which rounding can read */
  constructor(seed: number | bigint, loading = false) {
    if (!loading) this.#generator = new Generator(seed);
  }

  #parameter(make: () => Tensor): Tensor {
    const tensor = trainable(make);
    this.#parameters.push(tensor);
    return tensor;
  }

  #drawn(shape: readonly number[], draw: (zeros: Tensor, generator: Generator) => Tensor): Tensor {
    const generator = this.#generator;
    return this.#parameter(() => {
      const zeros = ops.zeros(shape);
      return generator ? draw(zeros, generator) : zeros;
    });
  }

  full(shape: readonly number[], value: number): Tensor {
    return this.#parameter(() => ops.full(shape, value, { dtype: 'float32' }));
  }

  normal(shape: readonly number[], std: number): Tensor {
    return this.#drawn(shape, (zeros, generator) => ops.normal_(zeros, 0, std, { generator }));
  }

  uniform(shape: readonly number[], bound: number): Tensor {
    return this.#drawn(shape, (zeros, generator) => ops.uniform_(zeros, -bound, bound, { generator }));
  }

  /** Normal values; those beyond two standard deviations are drawn again. */
  truncatedNormal(shape: readonly number[], std: number): Tensor {
    return this.#drawn(shape, (_, generator) => {
      const values = new Float32Array(shape.reduce((a, b) => a * b, 1));
      let filled = 0;
      while (filled < values.length) {
        const normal = ops.randn([values.length], { generator, device: host }).data();
        for (const value of normal as Float32Array) {
          if (Math.abs(value) <= 2 && filled < values.length) values[filled++] = value * std;
        }
      }
      return ops.reshape(Tensor.from(values), shape);
    });
  }

  identity(size: number, offDiagonal: number): Tensor {
    return this.#parameter(() => identity(size, offDiagonal));
  }

  /** Returns what `make` returns; if it throws, the parameters that it made are freed. */
  allOrNone<T>(make: () => T): T {
    const before = this.#parameters.length;
    try {
      return make();
    } catch (cause) {
      for (const tensor of this.#parameters.splice(before)) tensor.dispose();
      throw cause;
    }
  }

  [Symbol.dispose](): void {
    this.#generator?.[Symbol.dispose]();
  }
}
