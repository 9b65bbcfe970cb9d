/**
 * Tensors that processes share out, and gather together while they are needed: those of a block of a model, or of all that is outside of
 * blocks (ZeRO stage 3, Rajbhandari et al. 2020, arXiv 1910.02054).
 */
import {
  detachFromScopes,
  give,
  giveBack,
  isAbsent,
  noGrad,
  ops,
  refill,
  scope,
  setAside,
  Tensor,
  takeAway,
  takeMemory,
} from '../tensor/index.ts';
import { concatenated, parts, size } from './buckets.ts';
import { EvenShares, type ReadRows, rowCount, type ShareFile } from './even-shares.ts';
import type { Group } from './group.ts';
import { type Piece, wholePiece } from './pieces.ts';
import type { SpareMemory } from './spare-memory.ts';

/** What a unit consists of, with what has the numbers: a file, or the memory of this process. */
export interface UnitTensors {
  /** Tensors that nobody changes: each process keeps an equal share of their bytes, in the form in which they are held. */
  readonly frozen: ReadonlyMap<Tensor, ReadRows>;
  /** Tensors that are trained, float32. */
  readonly trained: ReadonlyMap<Tensor, ReadRows>;
  /** The process that keeps each trained tensor whole, and updates it. Default: they are shared out as evenly as what is frozen. */
  readonly owners?: ReadonlyMap<Tensor, number> | undefined;
}

/** Trained tensors of one process that are on their way. */
interface Arriving {
  readonly tensors: readonly Tensor[];
  /** Their numbers, one after the other. */
  readonly numbers: Tensor;
  readonly finish: () => void;
}

/** What a recorded graph reads in the backward pass. */
interface Aside {
  /** What was gathered, without its memory. */
  readonly gathered: readonly Tensor[];
  /** What each tensor was. */
  readonly views: ReadonlyMap<Tensor, Tensor>;
}

export class ShardedUnit {
  readonly #group: Group;
  readonly #spare: SpareMemory;
  /** What is shared out evenly: frozen, and trained. */
  readonly #even: readonly EvenShares[];
  /** The trained tensors that are kept whole, by the process that keeps them. */
  readonly #whole: readonly (readonly Tensor[])[];
  /** Of each trained tensor, what each process keeps. */
  readonly pieces: ReadonlyMap<Tensor, readonly Piece[]>;
  #underWay:
    | { readonly even: readonly ((() => Tensor) | undefined)[]; readonly whole: readonly Arriving[] }
    | undefined;
  /** What the tensors are views of, while they are here. */
  #gathered: Tensor[] | undefined;
  /** The same between the forward pass and a backward pass that reads it. */
  #aside: Aside | undefined;

  /**
   * Reads this process's share; afterwards it keeps nothing else, and the tensors of the unit are absent.
   * @param spare memory that units of one size gather into
   * @param file where the share of what is frozen is. Default: in memory
   */
  constructor(group: Group, { frozen, trained, owners }: UnitTensors, spare: SpareMemory, file?: ShareFile) {
    this.#group = group;
    this.#spare = spare;
    const divided = new EvenShares(group, owners ? new Map() : trained);
    this.#even = [new EvenShares(group, frozen, file), divided];
    this.#whole = Array.from({ length: group.size }, (_, rank) =>
      [...trained.keys()].filter((tensor) => owners?.get(tensor) === rank),
    );
    noGrad(() => {
      for (const tensor of this.#own) {
        using _ = scope();
        if (isAbsent(tensor)) give(tensor, ops.contiguous(trained.get(tensor)!(0, rowCount(tensor))));
      }
    });
    this.pieces = new Map(
      Array.from(trained.keys(), (tensor) => {
        const owner = owners?.get(tensor);
        return [
          tensor,
          owner === undefined ? this.#dividedPieces(divided, tensor) : [wholePiece(group, tensor, owner)],
        ];
      }),
    );
    this.#takeAway();
  }

  #dividedPieces(shares: EvenShares, tensor: Tensor): Piece[] {
    const { rank, size } = this.#group;
    return Array.from({ length: size }, (_, owner) => owner).flatMap((owner) => {
      const range = shares.rangeOf(tensor, owner);
      if (!range) return [];
      return [{ ...range, owner, own: owner === rank ? shares.own(tensor) : undefined }];
    });
  }

  get #own(): readonly Tensor[] {
    return this.#whole[this.#group.rank]!;
  }

  /** Bytes that a process keeps of what is shared out evenly, and those that all of them have while they are here. */
  get bytes(): { readonly kept: number; readonly whole: number } {
    const kept = this.#even.reduce((sum, { bytes }) => sum + bytes, 0);
    return { kept, whole: kept * this.#group.size };
  }

  /** Begins to gather the tensors, which goes on while this process computes. Every process has to call it. */
  begin(): void {
    if (this.#underWay || this.#gathered) return;
    noGrad(() => {
      using _ = scope();
      const even = this.#even.map((shares) => shares.begin(this.#spare));
      const whole = this.#whole.flatMap((tensors, owner): Arriving[] => {
        if (tensors.length === 0) return [];
        const isOwn = owner === this.#group.rank;
        const numbers = detachFromScopes(isOwn ? concatenated(tensors) : Tensor.empty([size(tensors)]));
        return [{ tensors, numbers, finish: this.#group.beginBroadcast(numbers, owner) }];
      });
      this.#underWay = { even, whole };
    });
  }

  /** Gathers the tensors: every process has them until `away`. */
  present(): void {
    if (this.#gathered) return;
    this.begin();
    const { even, whole } = this.#underWay!;
    this.#underWay = undefined;
    const [gathered, show]: [Tensor[], (() => void)[]] = [[], []];
    noGrad(() => {
      using _ = scope();
      for (const [i, finish] of even.entries()) {
        if (!finish) continue;
        const bytes = finish();
        gathered.push(bytes);
        show.push(() => this.#even[i]!.show(bytes));
      }
      for (const { tensors, numbers, finish } of whole) {
        finish();
        if (tensors === this.#own) {
          numbers.dispose(); // it trains its own
          continue;
        }
        gathered.push(numbers);
        show.push(() => {
          const views = parts(numbers, tensors);
          for (const [i, tensor] of tensors.entries()) give(tensor, ops.detach(views[i]!));
        });
      }
      this.#gathered = this.#aside ? this.#restored(this.#aside, gathered) : gathered;
      if (!this.#aside) for (const views of show) views();
      this.#aside = undefined;
    });
  }

  /** The tensors of before are there again, in the memory that was gathered now. */
  #restored({ gathered, views }: Aside, from: readonly Tensor[]): Tensor[] {
    for (const [i, tensor] of gathered.entries()) refill(tensor, from[i]!);
    for (const [tensor, view] of views) giveBack(tensor, view);
    return [...gathered];
  }

  /** As `away`, where a recorded graph reads these tensors in the backward pass: the next `present` gives them their memory back. */
  setAside(): void {
    if (!this.#gathered) return;
    const views = new Map(this.#visiting.map((tensor) => [tensor, detachFromScopes(setAside(tensor))]));
    for (const tensor of this.#gathered) this.#spare.keep(takeMemory(tensor));
    this.#aside = { gathered: this.#gathered, views };
    this.#gathered = undefined;
  }

  /** Frees what this process does not keep. */
  away(): void {
    for (const tensor of [...(this.#aside?.views.values() ?? []), ...(this.#aside?.gathered ?? [])]) tensor.dispose();
    if (this.#gathered) this.#takeAway();
    for (const tensor of this.#gathered ?? []) this.#spare.keep(tensor);
    this.#gathered = undefined;
    this.#aside = undefined;
  }

  /** The tensors that are here only while they are gathered. */
  get #visiting(): Tensor[] {
    return [...this.#even.flatMap(({ tensors }) => tensors), ...this.#whole.flat()].filter(
      (tensor) => !this.#own.includes(tensor),
    );
  }

  #takeAway(): void {
    for (const tensor of this.#visiting) if (!isAbsent(tensor)) takeAway(tensor);
  }
}
