import { type BlockFormat, formats } from '../quant/index.ts';
import { type DType, detachFromScopes, ops, scope, type Tensor } from '../tensor/index.ts';
import { rowsOf, type StoredWeight, WeightReader } from './weight-reader.ts';

/** The shape of a matrix in blocks of a format: uint8 [rows, bytes of a row]. */
export function blockBytesOf(matrix: readonly number[], format: BlockFormat): readonly number[] {
  const [rows, width] = matrix as [number, number];
  const { blockElements, blockBytes } = formats[format];
  return [rows, (width / blockElements) * blockBytes];
}

/**
 * Returns tensors of the stored shapes without reading them. All share the memory of the largest, which holds zeros.
 */
export class ShapesReader extends WeightReader {
  readonly #memory = new Map<DType, Tensor>();

  override raw({ entry: { shape, bytes } }: StoredWeight): Tensor {
    const rows = rowsOf(shape);
    return this.#tensor([rows, bytes / rows], 'uint8');
  }

  override dense({ entry: { shape } }: StoredWeight, dtype: DType, transposed = false): Tensor {
    return this.#tensor(transposed ? shape.toReversed() : shape, dtype);
  }

  override packed({ entry: { shape } }: StoredWeight, format: BlockFormat, transposed = false): Tensor {
    return this.#tensor(blockBytesOf(transposed ? shape.toReversed() : shape, format), 'uint8');
  }

  /** Returns a tensor of its own on the shared memory. */
  #tensor(shape: readonly number[], dtype: DType): Tensor {
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
