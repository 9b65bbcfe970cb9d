/**
 * Tensors that processes share out, and gather together while they are needed: those of a block of a model, or of all that is outside of
 * blocks (ZeRO stage 3, Rajbhandari et al. 2020, arXiv 1910.02054).
 */
import { type DType, detachFromScopes, give, isAbsent, noGrad, ops, scope, Tensor, takeAway } from '../tensor/index.ts';
import { concatenated, parts, size } from './buckets.ts';
import type { Group } from './group.ts';

/** Returns some rows of a tensor (of its first dimension; a vector is one row) in its element type. */
export type ReadRows = (first: number, count: number) => Tensor;

/** What a unit consists of, with what has the numbers: a file, or the memory of this process. */
export interface UnitTensors {
  /** Tensors that nobody changes: each process keeps an equal share of their bytes, in the form in which they are held. */
  readonly frozen: ReadonlyMap<Tensor, ReadRows>;
  /** Tensors that are trained, float32: one process keeps each whole, and updates it. */
  readonly trained: ReadonlyMap<Tensor, { readonly owner: number; readonly read: ReadRows }>;
}

/** Views of the gathered bytes in other element types begin at multiples of this. */
const alignment = 64;

const aligned = (bytes: number) => Math.ceil(bytes / alignment) * alignment;
const rowCount = ({ shape }: Tensor) => (shape.length > 1 ? shape[0]! : 1);
const asBytes = (tensor: Tensor) => ops.reshape(ops.viewAs(ops.contiguous(tensor), 'uint8'), [tensor.nbytes]);

/** A file that tensors can be in. */
export interface ShareFile {
  /** Returns a tensor of zeros in the file. */
  zeros(shape: readonly number[], dtype: DType): Tensor;
  /** Says that a tensor was written, so that it can leave memory. */
  written(tensor: Tensor): void;
}

/** Reads rows of a tensor that this process has. */
export const rowsInMemory =
  (tensor: Tensor): ReadRows =>
  (first, count) =>
    rowCount(tensor) > 1 ? ops.narrow(tensor, 0, first, count) : tensor;

/** Trained tensors of one process that are on their way. */
interface Arriving {
  readonly tensors: readonly Tensor[];
  /** Their numbers, one after the other. */
  readonly numbers: Tensor;
  readonly finish: () => void;
}

export class ShardedUnit {
  readonly #group: Group;
  /** Where each frozen tensor begins in the bytes of all. */
  readonly #frozen: readonly { readonly tensor: Tensor; readonly offset: number }[];
  /** This process's share of these bytes. */
  readonly #share: Tensor;
  /** The trained tensors by the process that keeps them. */
  readonly #trained: readonly (readonly Tensor[])[];
  #underWay: { readonly frozen: (() => Tensor) | undefined; readonly trained: readonly Arriving[] } | undefined;
  /** What the tensors are views of, while they are here. */
  #gathered: Tensor[] | undefined;

  /**
   * Reads this process's share; afterwards it keeps nothing else, and the tensors of the unit are absent.
   * @param file where the share of what is frozen is. Default: in memory
   */
  constructor(group: Group, { frozen, trained }: UnitTensors, file?: ShareFile) {
    this.#group = group;
    let offset = 0;
    this.#frozen = Array.from(frozen.keys(), (tensor) => {
      const placed = { tensor, offset };
      offset += aligned(tensor.nbytes);
      return placed;
    });
    this.#trained = Array.from({ length: group.size }, (_, rank) =>
      [...trained].filter(([, { owner }]) => owner === rank).map(([tensor]) => tensor),
    );
    this.#share = noGrad(() => {
      using s = scope();
      const shape = [aligned(offset / group.size)];
      const isInFile = file !== undefined && offset > 0;
      const zeros = isInFile ? file.zeros(shape, 'uint8') : ops.zeros(shape, { dtype: 'uint8' });
      const share = detachFromScopes(s.keep(zeros));
      for (const { tensor, offset } of this.#frozen) this.#readShare(share, tensor, offset, frozen.get(tensor)!);
      if (isInFile) file.written(share);
      for (const tensor of this.#own) {
        if (isAbsent(tensor)) give(tensor, ops.contiguous(trained.get(tensor)!.read(0, rowCount(tensor))));
      }
      return share;
    });
    this.#takeAway();
  }

  get #own(): readonly Tensor[] {
    return this.#trained[this.#group.rank]!;
  }

  /** Bytes that a process keeps of the frozen tensors, and those that all of them have while they are here. */
  get bytes(): { readonly kept: number; readonly whole: number } {
    return { kept: this.#share.nbytes, whole: this.#share.nbytes * this.#group.size };
  }

  #readShare(share: Tensor, tensor: Tensor, offset: number, read: ReadRows): void {
    const begin = this.#group.rank * share.numel;
    const from = Math.max(begin, offset) - offset;
    const to = Math.min(begin + share.numel, offset + tensor.nbytes) - offset;
    if (from >= to) return;
    using _ = scope();
    const rowBytes = tensor.nbytes / rowCount(tensor);
    const first = Math.floor(from / rowBytes);
    const bytes = asBytes(read(first, Math.ceil(to / rowBytes) - first));
    const target = ops.narrow(share, 0, offset + from - begin, to - from);
    ops.copy_(target, ops.narrow(bytes, 0, from - first * rowBytes, to - from));
  }

  /** Begins to gather the tensors, which goes on while this process computes. Every process has to call it. */
  begin(): void {
    if (this.#underWay || this.#gathered) return;
    noGrad(() => {
      using _ = scope();
      const frozen = this.#share.numel > 0 ? this.#group.beginGather(this.#share) : undefined;
      const trained = this.#trained.flatMap((tensors, owner): Arriving[] => {
        if (tensors.length === 0) return [];
        const isOwn = owner === this.#group.rank;
        const numbers = detachFromScopes(isOwn ? concatenated(tensors) : Tensor.empty([size(tensors)]));
        return [{ tensors, numbers, finish: this.#group.beginBroadcast(numbers, owner) }];
      });
      this.#underWay = { frozen, trained };
    });
  }

  /** Gathers the tensors: every process has them until `away`. */
  present(): void {
    if (this.#gathered) return;
    this.begin();
    const { frozen, trained } = this.#underWay!;
    this.#underWay = undefined;
    this.#gathered = [];
    noGrad(() => {
      using _ = scope();
      if (frozen) {
        const bytes = this.#keep(frozen());
        for (const { tensor, offset } of this.#frozen) {
          const own = ops.viewAs(ops.narrow(bytes, 0, offset, tensor.nbytes), tensor.dtype);
          give(tensor, ops.view(own, tensor.shape));
        }
      }
      for (const { tensors, numbers, finish } of trained) {
        finish();
        if (tensors === this.#own) {
          numbers.dispose(); // it trains its own
          continue;
        }
        const views = parts(this.#keep(numbers), tensors);
        for (const [i, tensor] of tensors.entries()) give(tensor, ops.detach(views[i]!));
      }
    });
  }

  #keep(gathered: Tensor): Tensor {
    this.#gathered!.push(gathered);
    return gathered;
  }

  /** Frees what this process does not keep. */
  away(): void {
    if (!this.#gathered) return;
    this.#takeAway();
    for (const tensor of this.#gathered) tensor.dispose();
    this.#gathered = undefined;
  }

  #takeAway(): void {
    for (const { tensor } of this.#frozen) if (!isAbsent(tensor)) takeAway(tensor);
    for (const tensor of this.#trained.flat()) if (!this.#own.includes(tensor) && !isAbsent(tensor)) takeAway(tensor);
  }
}
