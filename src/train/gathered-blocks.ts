/**
 * The order in which processes gather the parts of a model and send its gradients (ZeRO stage 3). In a pass every process gathers the
 * embeddings for their lookups, each block for its forward pass and again for its backward pass, and the head for the loss; the next part is on
 * its way meanwhile. What is small besides stays for the pass. A process without rows does the same without
 * computing.
 */
import { GraftError } from '../base/index.ts';
import type { Group, ShardedUnit, SpareMemory } from '../distributed/index.ts';
import type { Gates } from '../nn/index.ts';
import type { Gate, Tensor } from '../tensor/index.ts';
import type { GradientsToOwners } from './gradients-to-owners.ts';

/** A part of a model: a block, the embeddings, the head, or all else that is outside of blocks. */
export interface GatheredPart {
  readonly unit: ShardedUnit;
  /** Its trained tensors. */
  readonly trained: readonly Tensor[];
  /** All of its tensors. */
  readonly tensors: ReadonlySet<Tensor>;
}

/** The parts of a run's models, which share their blocks. */
export interface GatheredParts {
  /** The table of embeddings, and the output layers of heads. Nothing where they are one: a pass needs that at both ends. */
  readonly embeddings: GatheredPart;
  readonly head: GatheredPart;
  /** All else that is outside of the blocks, such as the last norm. */
  readonly outside: GatheredPart;
  readonly blocks: readonly GatheredPart[];
  /** The process that updates each trained tensor of no part. */
  readonly owners: ReadonlyMap<Tensor, number>;
  /** Memory that blocks are gathered into one after the other. */
  readonly spare: SpareMemory;
}

/** All parts. */
export const partsOf = ({
  embeddings,
  head,
  outside,
  blocks,
}: Omit<GatheredParts, 'owners' | 'spare'>): readonly GatheredPart[] => [embeddings, head, outside, ...blocks];

/** Where a pass is. */
interface Pass {
  /** Whether a backward pass follows. */
  readonly trains: boolean;
  /** The block whose turn it is; before the backward pass they count up, in it down. */
  next: number;
  /** The lowest block that the backward pass reaches: how many blocks there are, where it reaches none. */
  lowest: number;
  /** Whether it reaches the embeddings. */
  reachesEmbeddings: boolean;
  isBackward: boolean;
  /** Whether the head is here. */
  hasHead: boolean;
}

export class GatheredBlocks {
  readonly #group: Group;
  readonly #parts: Omit<GatheredParts, 'owners'>;
  readonly #blocks: readonly GatheredPart[];
  readonly #gradients: GradientsToOwners;
  #pass: Pass | undefined;

  constructor(group: Group, parts: Omit<GatheredParts, 'owners'>, gradients: GradientsToOwners) {
    this.#group = group;
    this.#parts = parts;
    this.#blocks = parts.blocks;
    this.#gradients = gradients;
  }

  /** What blocks and embeddings run in. */
  get gates(): Gates {
    const block = (number: number): Gate => ({
      forward: (run, isRecorded) => this.#forward(number, run, isRecorded),
      backward: (run) => this.#backward(number, run),
    });
    return { block, ...(this.#parts.embeddings.tensors.size > 0 && { embeddings: block(-1) }) };
  }

  /**
   * Runs one forward pass of the model, with what is outside of its blocks. Every process has to call it equally often.
   * @param run undefined: this process has none, and takes part in those of the others
   * @param trains whether the backward pass follows
   */
  during(run: (() => void) | undefined, trains: boolean): void {
    const { outside, embeddings } = this.#parts;
    const count = this.#blocks.length;
    const common = { reachesEmbeddings: false, isBackward: false, hasHead: false };
    const pass: Pass = { ...common, trains, next: embeddings.tensors.size > 0 ? -1 : 0, lowest: count };
    this.#pass = pass;
    try {
      outside.unit.present();
      if (run) run();
      else this.#follow(pass);
      this.#leaveHead(pass);
      const end = pass.reachesEmbeddings ? -2 : pass.lowest - 1;
      const isOver = pass.isBackward ? pass.next === end : pass.next === count && !trains;
      if (!isOver) throw this.#outOfOrder(pass, 'its end');
      if (trains) this.#gradients.send(outside.trained);
    } finally {
      for (const { unit } of partsOf(this.#parts)) unit.away();
      this.#parts.spare.free();
      this.#pass = undefined;
    }
  }

  #follow(pass: Pass): void {
    if (pass.next < 0) this.#forward(-1, () => []);
    for (const block of this.#blocks.keys()) this.#forward(block, () => []);
    if (!pass.trains) return;
    for (let block = this.#blocks.length - 1; block >= pass.lowest; block--) this.#backward(block, () => {});
    if (pass.reachesEmbeddings) this.#backward(-1, () => {});
  }

  /** Runs a part of the forward pass: a block, or −1, the lookups in the embeddings. */
  #forward(block: number, run: () => readonly Tensor[], isRecorded = false): readonly Tensor[] {
    const pass = this.#enter(block, false, block + 1);
    const { unit } = this.#partAt(block);
    const outputs = run();
    const isTrained = outputs.some(({ requiresGrad }) => requiresGrad);
    if (isRecorded && isTrained) unit.setAside();
    else unit.away();
    if (block < 0) pass.reachesEmbeddings = pass.trains && isTrained;
    else if (isTrained) pass.lowest = Math.min(pass.lowest, block);
    pass.next++;
    if (pass.next < this.#blocks.length) return outputs;
    this.#parts.head.unit.present();
    pass.hasHead = true;
    if (pass.trains) this.#turn(pass);
    return outputs;
  }

  /** From the forward to the backward pass: processes without rows learn how far it goes. */
  #turn(pass: Pass): void {
    const { lowest, embeddings } = this.#group.agree({
      lowest: pass.lowest,
      embeddings: Number(pass.reachesEmbeddings),
    });
    pass.lowest = Math.min(...lowest);
    pass.reachesEmbeddings = embeddings.some((reaches) => reaches > 0);
    pass.isBackward = true;
    pass.next = this.#blocks.length - 1;
    if (pass.next >= pass.lowest) this.#blocks[pass.next]!.unit.begin();
  }

  /** What the loss has read of the head is over: its gradients are complete. */
  #leaveHead(pass: Pass): void {
    if (!pass.hasHead) return;
    pass.hasHead = false;
    const { unit, trained } = this.#parts.head;
    if (pass.trains) this.#gradients.send(trained);
    unit.away();
  }

  /** The same of the backward pass. */
  #backward(block: number, run: () => void): void {
    const goesOn = block > (this.#pass?.lowest ?? 0) || (block >= 0 && this.#pass?.reachesEmbeddings);
    const pass = this.#enter(block, true, goesOn ? block - 1 : undefined);
    const { unit, trained } = this.#partAt(block);
    try {
      run();
      this.#gradients.send(trained);
    } finally {
      unit.away();
    }
    pass.next--;
  }

  /** The part of a number: a block, what comes before the first, or after the last. */
  #partAt(block: number): GatheredPart {
    return block < 0 ? this.#parts.embeddings : (this.#blocks[block] ?? this.#parts.head);
  }

  /** Gathers a part, and begins to gather the one that follows it. */
  #enter(block: number, isBackward: boolean, following: number | undefined): Pass {
    const pass = this.#pass;
    if (!pass || pass.next !== block || pass.isBackward !== isBackward) throw this.#outOfOrder(pass, placeName(block));
    this.#leaveHead(pass);
    this.#partAt(block).unit.present();
    if (following !== undefined) this.#partAt(following).unit.begin();
    return pass;
  }

  #outOfOrder(pass: Pass | undefined, where: string): GraftError {
    const expected = pass
      ? `${placeName(pass.next)} in the ${pass.isBackward ? 'backward' : 'forward'} pass`
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
    const all = partsOf(this.#parts);
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
    this.#parts.spare.free();
  }
}

const placeName = (block: number) => (block < 0 ? 'the embeddings' : `block ${block + 1}`);
