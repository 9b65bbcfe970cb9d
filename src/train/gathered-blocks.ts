/**
 * The order in which processes gather the parts of a model and send its gradients (ZeRO stage 3). In a pass every process gathers what is
 * outside of the blocks, and each block for its forward pass and, under gradient checkpointing, for its backward pass; the next one is on
 * its way meanwhile. A process without rows does the same without computing.
 */
import { GraftError } from '../base/index.ts';
import type { Group, ShardedUnit } from '../distributed/index.ts';
import type { Gate, Tensor } from '../tensor/index.ts';
import type { GradientsToOwners } from './gradients-to-owners.ts';

/** A part of a model: a block, or all that is outside of blocks. */
export interface GatheredPart {
  readonly unit: ShardedUnit;
  /** Its trained tensors. */
  readonly trained: readonly Tensor[];
  /** All of its tensors. */
  readonly tensors: ReadonlySet<Tensor>;
}

/** The parts of a run's models, which share their blocks. */
export interface GatheredParts {
  /** All that is outside of the blocks: embeddings, the last norm, heads. */
  readonly outside: GatheredPart;
  readonly blocks: readonly GatheredPart[];
  /** The process that updates each trained tensor of no part. */
  readonly owners: ReadonlyMap<Tensor, number>;
}

/** Where a pass is. */
interface Pass {
  /** Whether a backward pass follows. */
  readonly trains: boolean;
  /** The block whose turn it is; before the backward pass they count up, in it down. */
  next: number;
  /** The lowest block that the backward pass reaches: how many blocks there are, where it reaches none. */
  lowest: number;
  isBackward: boolean;
}

export class GatheredBlocks {
  readonly #group: Group;
  readonly #outside: GatheredPart;
  readonly #blocks: readonly GatheredPart[];
  readonly #gradients: GradientsToOwners;
  #pass: Pass | undefined;

  constructor(group: Group, { outside, blocks }: Pick<GatheredParts, 'outside' | 'blocks'>, gradients: GradientsToOwners) {
    this.#group = group;
    this.#outside = outside;
    this.#blocks = blocks;
    this.#gradients = gradients;
  }

  /** The gate of a block, for `useGates`. */
  gateOf(block: number): Gate {
    return {
      forward: (run) => this.#forward(block, run),
      backward: (run) => this.#backward(block, run),
    };
  }

  /**
   * Runs one forward pass of the model, with what is outside of its blocks. Every process has to call it equally often.
   * @param run undefined: this process has none, and takes part in those of the others
   * @param trains whether the backward pass follows
   */
  during(run: (() => void) | undefined, trains: boolean): void {
    const count = this.#blocks.length;
    const pass: Pass = { trains, next: 0, lowest: count, isBackward: false };
    this.#pass = pass;
    try {
      this.#outside.unit.present();
      if (run) run();
      else this.#follow(pass);
      const isOver = pass.isBackward ? pass.next < pass.lowest : pass.next === count && !trains;
      if (!isOver) throw this.#outOfOrder(pass, 'its end');
      if (trains) this.#gradients.send(this.#outside.trained);
    } finally {
      this.#outside.unit.away();
      this.#pass = undefined;
    }
  }

  #follow(pass: Pass): void {
    for (const block of this.#blocks.keys()) this.#forward(block, () => []);
    if (!pass.trains) return;
    for (let block = this.#blocks.length - 1; block >= pass.lowest; block--) this.#backward(block, () => {});
  }

  #forward(block: number, run: () => readonly Tensor[]): readonly Tensor[] {
    const pass = this.#enter(block, false, block + 1 < this.#blocks.length ? block + 1 : undefined);
    const { unit } = this.#blocks[block]!;
    let outputs: readonly Tensor[];
    try {
      outputs = run();
    } finally {
      unit.away();
    }
    if (outputs.some(({ requiresGrad }) => requiresGrad)) pass.lowest = Math.min(pass.lowest, block);
    pass.next++;
    if (pass.trains && pass.next === this.#blocks.length) this.#turn(pass);
    return outputs;
  }

  /** From the forward to the backward pass: processes without rows learn how far it goes. */
  #turn(pass: Pass): void {
    pass.lowest = Math.min(...this.#group.agree({ lowest: pass.lowest }).lowest);
    pass.isBackward = true;
    pass.next = this.#blocks.length - 1;
    if (pass.next >= pass.lowest) this.#blocks[pass.next]!.unit.begin();
  }

  #backward(block: number, run: () => void): void {
    const pass = this.#enter(block, true, block > (this.#pass?.lowest ?? 0) ? block - 1 : undefined);
    const { unit, trained } = this.#blocks[block]!;
    try {
      run();
      this.#gradients.send(trained);
    } finally {
      unit.away();
    }
    pass.next--;
  }

  /** Gathers a block, and begins to gather the one that follows it. */
  #enter(block: number, isBackward: boolean, following: number | undefined): Pass {
    const pass = this.#pass;
    if (!pass || pass.next !== block || pass.isBackward !== isBackward)
      throw this.#outOfOrder(pass, `block ${block + 1}`);
    this.#blocks[block]!.unit.present();
    if (following !== undefined) this.#blocks[following]!.unit.begin();
    return pass;
  }

  #outOfOrder(pass: Pass | undefined, where: string): GraftError {
    const expected = pass
      ? `block ${pass.next + 1} in the ${pass.isBackward ? 'backward' : 'forward'} pass`
      : 'no pass';
    return new GraftError('engine', `the processes gather ${expected} next, and this one came to ${where}`, {
      place: 'train.zero.stage',
      hint: 'Set it to 2',
    });
  }

  /**
   * Runs `act` on rank 0, which may ask for any tensor of the model: the others take part in gathering its block. Every process has to
   * call it.
   */
  whole(act: (present: (tensor: Tensor) => void) => void): void {
    const all = [this.#outside, ...this.#blocks];
    let here: number | undefined;
    const show = (next: number | undefined) => {
      if (here !== undefined) all[here]!.unit.away();
      here = next;
      if (here !== undefined) all[here]!.unit.present();
    };
    if (this.#group.rank === 0) {
      act((tensor) => {
        const wanted = all.findIndex(({ tensors }) => tensors.has(tensor));
        if (wanted >= 0 && wanted !== here) show(this.#group.share(() => wanted));
      });
      this.#group.share(() => undefined);
    } else {
      for (;;) {
        const wanted = this.#group.share((): number | undefined => undefined);
        if (wanted === undefined) break;
        show(wanted);
      }
    }
    show(undefined);
  }
}
