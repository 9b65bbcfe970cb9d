/**
 * The memory of a block that was gathered, for the next one of its size. The system clears memory that is new to a process, which takes as long
 * as to receive what comes into it.
 */
import { detachFromScopes, isShared, Tensor, takeMemory } from '../tensor/index.ts';

export class SpareMemory {
  #bytes: Tensor | undefined;

  /** Returns so many bytes of memory, whatever is in them, which live until they are disposed or kept. What is of another size is freed. */
  take(bytes: number): Tensor {
    const spare = this.#bytes;
    if (spare?.numel === bytes) {
      this.#bytes = undefined;
      return spare;
    }
    this.free();
    return detachFromScopes(Tensor.empty([bytes], 'uint8'));
  }

  /** Disposes a tensor, and keeps its memory where nothing else reads it. */
  keep(tensor: Tensor): void {
    if (!isShared(tensor)) {
      this.free();
      this.#bytes = detachFromScopes(takeMemory(tensor));
    }
    tensor.dispose();
  }

  /** Frees what is kept. */
  free(): void {
    this.#bytes?.dispose();
    this.#bytes = undefined;
  }
}
