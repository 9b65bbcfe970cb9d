/**
 * Which rows the next pass of the model computes, and how many tokens of each: continuous batching (Orca, OSDI 2022) with prompts in
 * chunks beside rows that decode (arXiv 2403.02310). Shares are counted in tokens, and who has had fewest comes first (arXiv 2401.00588).
 * It sees no tensor, no text and no clock; `plan` and `apply` alternate.
 */
import { BlockManager } from './blocks.ts';
import type { EndReason } from './request.ts';
import type { Sequence } from './sequence.ts';

export interface SchedulerLimits {
  /** Tokens of a step at most. A row that begins also takes its virtual ones, which may exceed it. */
  readonly maxBatchTokens: number;
  /** Sequences that hold blocks at most; no more than `maxBatchTokens`. */
  readonly maxRunning: number;
  readonly maxQueue: number;
  readonly blocks: number;
  readonly blockSize: number;
}

/** A part of a step: the ids [start, start + count) of a sequence. */
export interface StepRow {
  readonly sequence: Sequence;
  readonly start: number;
  readonly count: number;
  /** Whether the last of them is the sequence's last, after which a token is sampled. */
  readonly samples: boolean;
}

export interface Step {
  /** Rows of one batch key, in the order of their adapters. */
  readonly rows: readonly StepRow[];
}

export class Scheduler {
  readonly blocks: BlockManager;
  readonly #limits: SchedulerLimits;
  /** By arrival, the first to come first. */
  #waiting: Sequence[] = [];
  #running: Sequence[] = [];
  /** Tokens that each share has had. */
  readonly #served = new Map<string, number>();
  /** The step in which each batch key was last computed. */
  readonly #lastStep = new Map<string, number>();
  /** A waiting row for which blocks were short: until it has them, no other begins, so that small rows cannot starve it. */
  #next: Sequence | undefined;
  #arrivals = 0;
  #steps = 0;
  #preemptions = 0;
  #lookedUp = 0;
  #found = 0;

  constructor(limits: SchedulerLimits) {
    this.#limits = limits;
    this.blocks = new BlockManager(limits.blocks, limits.blockSize);
  }

  get waiting(): number {
    return this.#waiting.length;
  }

  get running(): number {
    return this.#running.length;
  }

  get isIdle(): boolean {
    return this.#waiting.length + this.#running.length === 0;
  }

  get counts() {
    const { total, held, cached } = this.blocks;
    return {
      steps: this.#steps,
      preemptions: this.#preemptions,
      cache: { lookedUp: this.#lookedUp, found: this.#found },
      blocks: { total, used: held, cached },
    };
  }

  /** Ids and virtual tokens that a row can have at most: the last id that is sampled needs no slot. */
  get longestRow(): number {
    return this.#limits.blocks * this.#limits.blockSize + 1;
  }

  /** Puts a sequence into the queue. @returns false where the queue is full */
  add(sequence: Sequence): boolean {
    if (this.#waiting.length >= this.#limits.maxQueue) return false;
    sequence.arrival = this.#arrivals++;
    const { shareKey } = sequence;
    if (!this.sequences.some((other) => other.shareKey === shareKey)) {
      // Who comes back has not saved up what it did not use.
      const others = new Set(this.sequences.map((other) => other.shareKey));
      const least = others.size === 0 ? 0 : Math.min(...[...others].map((key) => this.#served.get(key) ?? 0));
      for (const [key, tokens] of this.#served) if (tokens <= least && !others.has(key)) this.#served.delete(key);
      this.#served.set(shareKey, Math.max(this.#served.get(shareKey) ?? 0, least));
    }
    this.#waiting.push(sequence);
    return true;
  }

  /**
   * Plans the next step, and ends what is cancelled or late.
   * @param now on the clock of the deadlines
   * @returns the step, which may be empty, and the sequences that ended
   */
  plan(now: number): Step & { readonly ended: readonly Sequence[] } {
    const ended = this.#endCancelled(now);
    const batchKey = this.#nextBatchKey();
    if (batchKey === undefined) return { rows: [], ended };
    this.#lastStep.set(batchKey, this.#steps);
    const rows: StepRow[] = [];
    let budget = this.#limits.maxBatchTokens;
    const add = (sequence: Sequence): void => {
      const count = Math.min(sequence.pending, budget);
      if (count === 0) return;
      budget -= count;
      rows.push({ sequence, start: sequence.computed, count, samples: count === sequence.pending });
    };
    // Rows that decode first; what is left of the budget goes to prompts, in the order of their arrival.
    const running = this.sequences.filter(
      (sequence) => sequence.batchKey === batchKey && this.#running.includes(sequence),
    );
    const isDecoding = ({ pending }: Sequence) => pending === 1;
    for (const sequence of [...running.filter(isDecoding), ...running.filter((other) => !isDecoding(other))]) {
      if (this.#running.includes(sequence) && this.#makeRoom(sequence, rows)) add(sequence);
    }
    while (budget > 0 && this.#running.length < this.#limits.maxRunning) {
      const next = this.#nextWaiting(batchKey);
      if (!next) break;
      this.#next = this.#admit(next) ? undefined : next;
      if (this.#next) break;
      add(next);
    }
    this.#steps++;
    rows.sort((a, b) => a.sequence.adapter - b.sequence.adapter);
    return { rows, ended };
  }

  /**
   * Takes what a step came to. Sequences that end give back their blocks.
   * @param sampled for each row of the step, the id that was sampled; undefined where none was
   * @returns the sequences that ended; an end token is not added to the ids
   */
  apply({ rows }: Step, sampled: readonly (number | undefined)[]): Sequence[] {
    const ended: Sequence[] = [];
    rows.forEach(({ sequence, start, count, samples }, r) => {
      sequence.computed = start + count;
      this.#publish(sequence);
      this.#served.set(sequence.shareKey, (this.#served.get(sequence.shareKey) ?? 0) + count);
      if (!samples) return;
      const id = sampled[r]!;
      const isEnd = sequence.eosIds.has(id);
      if (!isEnd) sequence.ids.push(id);
      if (!isEnd && sequence.newTokens < sequence.maxNewTokens) return;
      this.end(sequence, isEnd ? 'eos' : 'length');
      ended.push(sequence);
    });
    return ended;
  }

  /** Ends a sequence and frees its blocks; not while a step that has it is being computed. */
  end(sequence: Sequence, reason: EndReason): void {
    sequence.ended = reason;
    this.#free(sequence);
    this.#running = this.#running.filter((other) => other !== sequence);
    this.#waiting = this.#waiting.filter((other) => other !== sequence);
    if (this.#next === sequence) this.#next = undefined;
    if (this.isIdle) this.#served.clear();
  }

  /** The sequences that are not ended, by arrival. */
  get sequences(): readonly Sequence[] {
    return [...this.#running, ...this.#waiting].sort((a, b) => a.arrival - b.arrival);
  }

  #endCancelled(now: number): Sequence[] {
    const late = ({ deadline }: Sequence) => deadline !== undefined && now >= deadline;
    const ending = this.sequences.filter((sequence) => sequence.cancelled || late(sequence));
    for (const sequence of ending) this.end(sequence, sequence.cancelled ? 'interrupted' : 'deadline');
    return ending;
  }

  /** The batch key that has waited longest, among those that can do something now. */
  #nextBatchKey(): string | undefined {
    const isFull = this.#running.length >= this.#limits.maxRunning;
    const ready = [...this.#running, ...(isFull ? [] : this.#next ? [this.#next] : this.#waiting)];
    const keys = [...new Set(ready.map(({ batchKey }) => batchKey))];
    const last = (key: string) => this.#lastStep.get(key) ?? -1;
    for (const key of this.#lastStep.keys()) if (!keys.includes(key)) this.#lastStep.delete(key);
    return keys.reduce<string | undefined>(
      (best, key) => (best === undefined || last(key) < last(best) ? key : best),
      undefined,
    );
  }

  /** Of the shares with a row of this batch key, the first row of the one that has had least. */
  #nextWaiting(batchKey: string): Sequence | undefined {
    if (this.#next) return this.#next.batchKey === batchKey ? this.#next : undefined;
    let best: Sequence | undefined;
    const served = ({ shareKey }: Sequence) => this.#served.get(shareKey) ?? 0;
    for (const sequence of this.#waiting) {
      if (sequence.batchKey === batchKey && (!best || served(sequence) < served(best))) best = sequence;
    }
    return best;
  }

  /** Gives a waiting sequence the blocks of all its ids, of which others may have left some. @returns whether there are as many */
  #admit(sequence: Sequence): boolean {
    const { ids, virtual, contentKey } = sequence;
    const { blocks, parent } = this.blocks.match(contentKey, ids, virtual);
    const needed = Math.ceil((virtual + ids.length) / this.blocks.size) - blocks.length;
    const taken = this.blocks.take(needed);
    if (!taken) {
      this.blocks.release(blocks);
      return false;
    }
    const found = blocks.length === 0 ? 0 : blocks.length * this.blocks.size - virtual;
    if (sequence.cachedTokens === undefined) {
      sequence.cachedTokens = found;
      this.#lookedUp += ids.length;
      this.#found += found;
    }
    sequence.computed = found;
    sequence.published = blocks.length;
    sequence.parent = parent;
    sequence.blocks = [...blocks, ...taken];
    this.#waiting = this.#waiting.filter((other) => other !== sequence);
    this.#running.push(sequence);
    return true;
  }

  /**
   * Makes sure that all ids of a running sequence have a slot; where blocks are short, the sequence that came last loses its own, and
   * computes them again later.
   * @param planned rows of the step, which keep theirs
   */
  #makeRoom(sequence: Sequence, planned: readonly StepRow[]): boolean {
    const needed = Math.ceil((sequence.virtual + sequence.ids.length) / this.blocks.size) - sequence.blocks.length;
    if (needed <= 0) return true;
    for (;;) {
      const taken = this.blocks.take(needed);
      if (taken) {
        sequence.blocks.push(...taken);
        return true;
      }
      const candidates = this.#running.filter((other) => !planned.some((row) => row.sequence === other));
      const last = candidates.reduce((a, b) => (b.arrival > a.arrival ? b : a));
      this.#preempt(last);
      if (last === sequence) return false;
    }
  }

  #preempt(sequence: Sequence): void {
    this.#free(sequence);
    this.#preemptions++;
    this.#running = this.#running.filter((other) => other !== sequence);
    const at = this.#waiting.findIndex(({ arrival }) => arrival > sequence.arrival);
    this.#waiting.splice(at < 0 ? this.#waiting.length : at, 0, sequence);
    if (this.#next && sequence.arrival < this.#next.arrival) this.#next = sequence;
  }

  #free(sequence: Sequence): void {
    this.blocks.release(sequence.blocks);
    sequence.blocks = [];
    sequence.computed = 0;
    sequence.published = 0;
    sequence.parent = sequence.contentKey;
  }

  /** Publishes the blocks that a pass has filled. */
  #publish(sequence: Sequence): void {
    const full = Math.floor(sequence.filled / this.blocks.size);
    for (; sequence.published < full; sequence.published++) {
      const { blocks, published, parent, ids, virtual } = sequence;
      sequence.parent = this.blocks.publish(blocks[published]!, parent, ids, virtual, published);
    }
  }
}
