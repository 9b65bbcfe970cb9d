import { type DType, detachFromScopes, ops, scope, type Tensor } from '../tensor/index.ts';
import { PlacingReader, type StoredWeight, type WeightForm } from './weight-reader.ts';

/**
 * Returns tensors of the stored shapes without reading them. All share the memory of the largest, which holds zeros.
 */
export class ShapesReader extends PlacingReader {
  readonly #memory = new Map<DType, Tensor>();

  /** Returns a tensor of its own on the shared memory. */
  protected place(_: StoredWeight, { shape, dtype }: WeightForm): Tensor {
    using s = scope();
    const count = shape.reduce((a, b) => a * b, 1);
    let memory = this.#memory.get(dtype);
    if (!memory || memory.numel < count) {
      memory?.dispose();
      memory = detachFromScopes(ops.zeros([count], { dtype }));
      this.#memory.set(dtype, memory);
    }
    return s.keep(ops.view(ops.narrow(memory, 0, 0, count), shape));
  }

  override [Symbol.dispose](): void {
    super[Symbol.dispose]();
    for (const memory of this.#memory.values()) memory.dispose();
    this.#memory.clear();
  }
}
