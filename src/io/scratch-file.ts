import { closeSync, openSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { getSystemErrorName } from 'node:util';
import { fileError, makeDirectory } from '../base/index.ts';
import { currentEngine } from '../engine/index.ts';
import { type DType, dtypes, noGrad, ops, Tensor } from '../tensor/index.ts';

/** Tensors begin at multiples of this: a page of memory. */
const alignment = 4096;
/** Bytes that may be written before they go to the disk. */
const mostWaiting = 2 ** 26;
const aligned = (bytes: number) => Math.ceil(bytes / alignment) * alignment;

/**
 * A file for tensors that need not be in memory. It has no name, so that nothing is left of it when the process ends, however that ends;
 * what is in it has its room on the disk, which cannot become full later.
 */
export class ScratchFile implements Disposable {
  readonly #dir: string;
  readonly #fd: number;
  /** Bytes of the file that have been given room, and how many of them tensors have taken. */
  #size = 0;
  #taken = 0;
  readonly #places = new Map<Tensor, number>();
  /** What has been written since the last time that all of it went to the disk. */
  readonly #waiting = new Set<Tensor>();
  #waitingBytes = 0;
  /** Where tensors of so many bytes have been freed. */
  readonly #free = new Map<number, number[]>();

  /** @throws GraftError 'environment' for missing rights */
  constructor(dir: string) {
    this.#dir = dir;
    makeDirectory(dir);
    const path = join(dir, `offload-${process.pid}-${performance.now()}`);
    try {
      this.#fd = openSync(path, 'wx+', 0o600);
      rmSync(path);
    } catch (error) {
      throw fileError(error, path, 'written');
    }
  }

  /** The bytes of a file with tensors of these sizes. */
  static sizeOf(bytes: Iterable<number>): number {
    return Iterator.from(bytes).reduce((sum, each) => sum + aligned(each), 0);
  }

  /** Bytes that the file takes on the disk. */
  get size(): number {
    return this.#size;
  }

  /** Takes room for so many bytes. @throws GraftError 'environment' where the disk does not have it */
  reserve(bytes: number): void {
    if (this.#taken + bytes <= this.#size) return;
    const more = this.#taken + bytes - this.#size;
    const errno = currentEngine().native.allocate(this.#fd, this.#size, more);
    if (errno !== 0) {
      const error = Object.assign(new Error('fallocate'), { code: getSystemErrorName(-errno), syscall: 'fallocate' });
      throw fileError(error, this.#dir, `given ${Math.ceil(more / 1e6)} MB for what is not kept in memory`);
    }
    this.#size += more;
  }

  /** Returns a tensor of zeros in the file. Free it by `release`. */
  zeros(shape: readonly number[], dtype: DType): Tensor {
    const bytes = aligned(shape.reduce((a, b) => a * b, dtypes[dtype].bytes));
    const freed = this.#free.get(bytes)?.pop();
    if (freed === undefined) this.reserve(bytes);
    const at = freed ?? this.#taken;
    if (freed === undefined) this.#taken += bytes;
    const tensor = Tensor.mapped(this.#fd, at, shape, dtype, true);
    this.#places.set(tensor, at);
    return freed === undefined ? tensor : noGrad(() => ops.zero_(tensor));
  }

  /** Whether a tensor is in the file. */
  holds(tensor: Tensor): boolean {
    return this.#places.has(tensor);
  }

  /**
   * Says that a tensor was written. When much has been, it goes to the disk and out of memory, from where it comes back when it is used: so
   * what waits to be written is limited, and the system can free the rest when memory is short.
   */
  written(tensor: Tensor): void {
    this.#waiting.add(tensor);
    this.#waitingBytes += tensor.nbytes;
    if (this.#waitingBytes < mostWaiting) return;
    const { native } = currentEngine();
    for (const each of this.#waiting)
      if (this.#places.has(each)) native.writeBack(each.id, this.#fd, this.#places.get(each)!);
    this.#waiting.clear();
    this.#waitingBytes = 0;
  }

  /** Frees a tensor: another one of its size takes its place. */
  release(tensor: Tensor): void {
    const bytes = aligned(tensor.nbytes);
    this.#free.set(bytes, [...(this.#free.get(bytes) ?? []), this.#places.get(tensor)!]);
    this.#places.delete(tensor);
    this.#waiting.delete(tensor);
    tensor.dispose();
  }

  /** Closes the file; tensors in it stay until they are freed. */
  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }
}
