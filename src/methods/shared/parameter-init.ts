import { detachFromScopes, Generator, noGrad, ops, scope, Tensor } from '../../tensor/index.ts';

/** What `make` returns, as a parameter: it outlives every scope, and gradients are kept for it. */
export function trainable(make: () => Tensor): Tensor {
  return noGrad(() => {
    using s = scope();
    const tensor = detachFromScopes(s.keep(make()));
    tensor.requiresGrad = true;
    return tensor;
  });
}

/** Trainable parameters with their initial values, drawn one after another from one seed. */
export class ParameterInit implements Disposable {
  readonly #generator: Generator;
  readonly #made: Tensor[] = [];

  constructor(seed: number | bigint) {
    this.#generator = new Generator(seed);
  }

  #parameter(make: () => Tensor): Tensor {
    const tensor = trainable(make);
    this.#made.push(tensor);
    return tensor;
  }

  full(shape: readonly number[], value: number): Tensor {
    return this.#parameter(() => ops.full(shape, value, { dtype: 'float32' }));
  }

  normal(shape: readonly number[], std: number): Tensor {
    return this.#parameter(() => ops.normal_(ops.zeros(shape), 0, std, { generator: this.#generator }));
  }

  uniform(shape: readonly number[], bound: number): Tensor {
    return this.#parameter(() => ops.uniform_(ops.zeros(shape), -bound, bound, { generator: this.#generator }));
  }

  /** Normal, drawn again where it is beyond two deviations. */
  truncatedNormal(shape: readonly number[], std: number): Tensor {
    return this.#parameter(() => {
      const values = new Float32Array(shape.reduce((a, b) => a * b, 1));
      let filled = 0;
      while (filled < values.length) {
        const drawn = ops.randn([values.length], { generator: this.#generator }).data();
        for (const value of drawn as Float32Array) {
          if (Math.abs(value) <= 2 && filled < values.length) values[filled++] = value * std;
        }
      }
      return ops.reshape(Tensor.from(values), shape);
    });
  }

  /** The identity with `rest` beside its diagonal. */
  identity(size: number, rest: number): Tensor {
    return this.#parameter(() => {
      const values = new Float32Array(size * size).fill(rest);
      for (let i = 0; i < size; i++) values[i * (size + 1)] = 1;
      return ops.reshape(Tensor.from(values), [size, size]);
    });
  }

  /** `make`'s outcome; if it fails, nothing that was drawn in it stays. */
  allOrNone<T>(make: () => T): T {
    const before = this.#made.length;
    try {
      return make();
    } catch (cause) {
      for (const tensor of this.#made.splice(before)) tensor.dispose();
      throw cause;
    }
  }

  [Symbol.dispose](): void {
    this.#generator[Symbol.dispose]();
  }
}
