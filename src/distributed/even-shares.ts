/** Tensors whose bytes processes share out evenly, whatever the size of each tensor. */
import {
  type DType,
  detachFromScopes,
  give,
  isAbsent,
  noGrad,
  ops,
  scope,
  type Tensor,
  takeAway,
} from '../tensor/index.ts';
import type { Group } from './group.ts';
import type { SpareMemory } from './spare-memory.ts';

/** Returns some rows of a tensor (of its first dimension; a vector is one row) in its element type. */
export type ReadRows = (first: number, count: number) => Tensor;

/** A file that tensors can be in. */
export interface ShareFile {
  /** Returns a tensor of zeros in the file. */
  zeros(shape: readonly number[], dtype: DType): Tensor;
  /** Says that a tensor was written, so that it can leave memory. */
  written(tensor: Tensor): void;
}

/** Views of the gathered bytes in other element types begin at multiples of this. */
const alignment = 64;

const aligned = (bytes: number) => Math.ceil(bytes / alignment) * alignment;
/** Rows of a tensor, of which a vector is one. */
export const rowCount = ({ shape }: Tensor) => (shape.length > 1 ? shape[0]! : 1);
const asBytes = (tensor: Tensor) => ops.reshape(ops.viewAs(ops.contiguous(tensor), 'uint8'), [tensor.nbytes]);

/** Reads rows of a tensor that this process has. */
export const rowsInMemory =
  (tensor: Tensor): ReadRows =>
  (first, count) =>
    rowCount(tensor) > 1 ? ops.narrow(tensor, 0, first, count) : tensor;

/** Consecutive numbers of a tensor. */
export interface NumberRange {
  readonly from: number;
  readonly count: number;
}

export class EvenShares {
  readonly #group: Group;
  /** Where each tensor begins in the bytes of all. */
  readonly #offsets: ReadonlyMap<Tensor, number>;
  /** This process's share of these bytes. */
  readonly #share: Tensor;

  /**
   * Reads this process's share; afterwards it keeps nothing else, and the tensors are absent.
   * @param file where the share is. Default: in memory
   */
  constructor(group: Group, tensors: ReadonlyMap<Tensor, ReadRows>, file?: ShareFile) {
    this.#group = group;
    let end = 0;
    this.#offsets = new Map(
      Array.from(tensors.keys(), (tensor) => {
        const offset = end;
        end += aligned(tensor.nbytes);
        return [tensor, offset];
      }),
    );
    this.#share = noGrad(() => {
      using s = scope();
      const shape = [aligned(end / group.size)];
      const isInFile = file !== undefined && end > 0;
      const zeros = isInFile ? file.zeros(shape, 'uint8') : ops.zeros(shape, { dtype: 'uint8' });
      const share = detachFromScopes(s.keep(zeros));
      for (const [tensor, read] of tensors) this.#read(share, tensor, read);
      if (isInFile) file.written(share);
      return share;
    });
    for (const tensor of tensors.keys()) if (!isAbsent(tensor)) takeAway(tensor);
  }

  /** What is shared out. */
  get tensors(): readonly Tensor[] {
    return [...this.#offsets.keys()];
  }

  /** Bytes of a share. */
  get bytes(): number {
    return this.#share.nbytes;
  }

  /** Which bytes of a tensor are in the share of a process. */
  #bytesOf(tensor: Tensor, rank: number, share = this.#share): { readonly from: number; readonly to: number } {
    const offset = this.#offsets.get(tensor)!;
    const begin = rank * share.numel;
    return {
      from: Math.max(begin, offset) - offset,
      to: Math.min(begin + share.numel, offset + tensor.nbytes) - offset,
    };
  }

  #read(share: Tensor, tensor: Tensor, read: ReadRows): void {
    const { rank } = this.#group;
    const { from, to } = this.#bytesOf(tensor, rank, share);
    if (from >= to) return;
    using _ = scope();
    const rowBytes = tensor.nbytes / rowCount(tensor);
    const first = Math.floor(from / rowBytes);
    const bytes = asBytes(read(first, Math.ceil(to / rowBytes) - first));
    const target = ops.narrow(share, 0, this.#offsets.get(tensor)! + from - rank * share.numel, to - from);
    ops.copy_(target, ops.narrow(bytes, 0, from - first * rowBytes, to - from));
  }

  /** The numbers of a tensor that a process has; undefined: none. */
  rangeOf(tensor: Tensor, rank: number): NumberRange | undefined {
    const { from, to } = this.#bytesOf(tensor, rank);
    const size = tensor.nbytes / tensor.numel;
    return from < to ? { from: from / size, count: (to - from) / size } : undefined;
  }

  /**
   * Returns these numbers of this process, in the memory of its share; undefined: it has none. A part of a matrix has two dimensions too,
   * since optimizers decay matrices only.
   */
  own(tensor: Tensor): Tensor | undefined {
    const { rank } = this.#group;
    const { from, to } = this.#bytesOf(tensor, rank);
    if (from >= to) return undefined;
    return noGrad(() => {
      using s = scope();
      const bytes = ops.narrow(this.#share, 0, this.#offsets.get(tensor)! + from - rank * this.#share.numel, to - from);
      const numbers = ops.viewAs(bytes, tensor.dtype);
      const ofPart = [...tensor.shape.slice(1).map(() => 1), numbers.numel];
      const shape = numbers.numel === tensor.numel ? tensor.shape : ofPart;
      return detachFromScopes(s.keep(ops.detach(ops.view(numbers, shape))));
    });
  }

  /** Begins to gather the bytes of all processes, in memory of `spare`. @returns what waits for them; undefined: there are none */
  begin(spare: SpareMemory): (() => Tensor) | undefined {
    if (this.#share.numel === 0) return undefined;
    const gathered = spare.take(this.#group.size * this.#share.numel);
    const wait = this.#group.beginGather(this.#share, gathered);
    return () => {
      wait();
      return gathered;
    };
  }

  /** Lets the tensors be views of the gathered bytes. */
  show(bytes: Tensor): void {
    for (const [tensor, offset] of this.#offsets) {
      const numbers = ops.viewAs(ops.narrow(bytes, 0, offset, tensor.nbytes), tensor.dtype);
      give(tensor, ops.detach(ops.view(numbers, tensor.shape)));
    }
  }
}
