/** A group of several processes: c10d's collectives over the connections that `joinGroup` made. */
import { deserialize, serialize } from 'node:v8';
import { GraftError } from '../base/index.ts';
import { currentEngine } from '../engine/index.ts';
import { detachFromScopes, dtypes, noGrad, ops, scope, Tensor } from '../tensor/index.ts';
import type { JoinedGroup, Traffic } from './group.ts';
import type { GroupStore } from './store.ts';

/**
 * Whether so many processes gather by broadcasts, so that everything comes to its place. LibTorch's own gather, a ring, copies what it has
 * received, but of more processes it is quicker: Gloo broadcasts along a tree, in which bytes travel log2(size) times, and two at a time.
 */
export const gathersInPlace = (size: number): boolean => size <= 4;

export class ConnectedGroup implements JoinedGroup {
  readonly #store: GroupStore;
  /** The name by which operators find the group. */
  readonly #name: string;
  /** How many collectives this process has waited for, the one that it waits for included. */
  #awaited = 0;
  #sent = 0;
  #received = 0;
  #waited = 0;
  /** What ended the group: no further collective is begun. */
  #ended: GraftError | undefined;
  /** Whether a collective failed: threads of the engine may still wait for other processes. */
  #hangs = false;

  constructor(store: GroupStore, name: string) {
    this.#store = store;
    this.#name = name;
  }

  get rank(): number {
    return this.#store.placement.rank;
  }

  get size(): number {
    return this.#store.placement.size;
  }

  get localSize(): number {
    return this.#store.placement.localSize;
  }

  get traffic(): Traffic {
    return { sent: this.#sent, received: this.#received, waited: this.#waited };
  }

  sum(tensor: Tensor): void {
    // A ring: each part travels to be added up, and once more to be known by all.
    const bytes = (2 * (this.size - 1) * tensor.nbytes) / this.size;
    this.#collective(() => ops.allReduce_(tensor, 'sum', this.#name), bytes, bytes);
  }

  gather(tensor: Tensor): Tensor {
    const bytes = (this.size - 1) * tensor.nbytes;
    return this.#collective(() => ops.allGather(tensor, this.size, this.#name), bytes, bytes);
  }

  beginGather(bytes: Tensor, into: Tensor): () => void {
    if (!gathersInPlace(this.size)) {
      const sent = (this.size - 1) * bytes.nbytes;
      return this.#begin(() => ops.allGatherOut(bytes, this.size, this.#name, { out: into }), sent, sent).finish;
    }
    const shares = Array.from({ length: this.size }, (_, owner) =>
      detachFromScopes(ops.narrow(into, 0, owner * bytes.numel, bytes.numel)),
    );
    noGrad(() => ops.copy_(shares[this.rank]!, bytes));
    const waits = shares.map((share, owner) => this.beginBroadcast(share, owner));
    return () => {
      for (const wait of waits) wait();
      for (const share of shares) share.dispose();
    };
  }

  scatter(tensor: Tensor): Tensor {
    if (tensor.size(0) % this.size !== 0)
      throw new GraftError('engine', `${tensor.size(0)} rows cannot be divided among ${this.size} processes`);
    // Gloo has no operation for it: LibTorch adds up everything and keeps a part.
    const bytes = (2 * (this.size - 1) * tensor.nbytes) / this.size;
    return this.#collective(() => ops.reduceScatter(tensor, 'sum', this.size, this.#name), bytes, bytes);
  }

  exchange(tensor: Tensor, sends: readonly number[], receives: readonly number[]): Tensor {
    return this.#exchange(tensor, sends, receives).finish();
  }

  beginExchange(tensor: Tensor, sends: readonly number[], receives: readonly number[]): () => Tensor {
    const { result, finish } = this.#exchange(tensor, sends, receives);
    detachFromScopes(result);
    return finish;
  }

  #exchange(tensor: Tensor, sends: readonly number[], receives: readonly number[]) {
    const { bytes } = dtypes[tensor.dtype];
    const sum = (counts: readonly number[]) =>
      bytes * counts.reduce((total, count, other) => total + (other === this.rank ? 0 : count), 0);
    const begin = () => ops.allToAll(tensor, receives, sends, this.#name);
    return this.#begin(begin, sum(sends), sum(receives));
  }

  broadcast(tensor: Tensor, from = 0): void {
    this.beginBroadcast(tensor, from)();
  }

  beginBroadcast(tensor: Tensor, from: number): () => void {
    const sends = this.rank === from ? this.size - 1 : 0;
    const received = sends === 0 ? tensor.nbytes : 0;
    return this.#begin(() => ops.broadcast_(tensor, from, this.#name), sends * tensor.nbytes, received).finish;
  }

  agree<K extends string>(values: Readonly<Record<K, number>>): Readonly<Record<K, readonly number[]>> {
    const names = Object.keys(values) as K[];
    using _ = scope();
    const all = this.gather(
      Tensor.from(
        Float64Array.from(names, (name) => values[name]),
        [names.length],
      ),
    ).data();
    const ofName = (i: number) => Array.from({ length: this.size }, (_, r) => Number(all[r * names.length + i]));
    return Object.fromEntries(names.map((name, i) => [name, ofName(i)])) as unknown as Record<K, readonly number[]>;
  }

  collect<T>(value: T): readonly T[] {
    using _ = scope();
    const bytes = serialize(value);
    const { length } = this.agree({ length: bytes.length });
    const longest = Math.max(...length);
    const padded = new Uint8Array(longest);
    padded.set(bytes);
    const all = this.gather(Tensor.from(padded)).bytes();
    return length.map((size, rank) => deserialize(all.subarray(rank * longest, rank * longest + size)) as T);
  }

  share<T>(make: () => T): T {
    using _ = scope();
    const bytes = this.rank === 0 ? Uint8Array.from(serialize(make())) : new Uint8Array();
    const length = Tensor.from(BigInt64Array.of(BigInt(bytes.length)));
    this.broadcast(length);
    const text = this.rank === 0 ? Tensor.from(bytes) : Tensor.empty([length.item()], 'uint8');
    this.broadcast(text);
    return deserialize(text.bytes()) as T;
  }

  barrier(): void {
    this.agree({ here: 1 });
  }

  failed(error: unknown): GraftError {
    if (this.#ended) return error instanceof GraftError && error.kind === 'interrupted' ? error : this.#ended;
    this.#ended = GraftError.of(error);
    this.#store.tell(this.#ended, this.rank);
    return this.#ended;
  }

  [Symbol.dispose](): void {
    this.#store.leave(this.#ended);
    currentEngine().native.groupClose(this.#store.id, !this.#hangs);
  }

  /** Begins a collective and waits for it. @throws GraftError that says which process failed, or takes no part */
  #collective(begin: () => Tensor, sent: number, received: number): Tensor {
    return this.#begin(begin, sent, received).finish();
  }

  /** Begins a collective. What waits for it is to be called once. */
  #begin(begin: () => Tensor, sent: number, received: number): { result: Tensor; finish: () => Tensor } {
    if (this.#ended) throw this.#ended;
    const start = performance.now();
    const result = noGrad(begin);
    this.#waited += (performance.now() - start) / 1e3;
    return { result, finish: () => this.#finish(result, sent, received) };
  }

  #finish(result: Tensor, sent: number, received: number): Tensor {
    if (this.#ended) throw this.#ended;
    const { native } = currentEngine();
    const { timeout } = this.#store.placement;
    const start = performance.now();
    this.#awaited++;
    try {
      const outcome = native.groupWait(this.#store.id, result.id, timeout);
      if (outcome !== 'done') {
        this.#ended = this.#store.diagnose(outcome === 'late' ? { late: timeout } : outcome, this.#awaited);
        throw this.#ended;
      }
      this.#sent += sent;
      this.#received += received;
      return result;
    } catch (cause) {
      this.#hangs = true;
      this.#ended ??= this.#store.diagnose('lost', this.#awaited, cause);
      throw this.#ended;
    } finally {
      this.#waited += (performance.now() - start) / 1e3;
    }
  }
}
