/** Processes that train together, and what they do together. */
import type { GraftError } from '../base/index.ts';
import { ops, type Tensor } from '../tensor/index.ts';

/** What a process exchanged with others. */
export interface Traffic {
  /** Bytes that collectives sent to other processes, by the volume of their algorithms. */
  readonly sent: number;
  /** Bytes that they received from them. */
  readonly received: number;
  /** Seconds that this process waited for collectives. */
  readonly waited: number;
}

/**
 * Processes that train together. Every process has to call the same functions in the same order, with tensors of the same shapes. A call
 * ends with an error when another process fails, ends or takes no part within the timeout: the error says which, and why where that is
 * known. A group of one process calls nothing and copies nothing.
 */
export interface Group {
  /** Number of this process, from 0. */
  readonly rank: number;
  /** How many processes there are. */
  readonly size: number;
  /** How many of them are on this machine. */
  readonly localSize: number;
  /** Adds up the tensors of all processes, in place. */
  sum(tensor: Tensor): void;
  /** Returns the tensors [d, …] of all processes one after the other: [size · d, …]. */
  gather(tensor: Tensor): Tensor;
  /** Begins to gather the bytes [d] of all processes into [size · d], which goes on while this process computes. @returns what waits for its end */
  beginGather(bytes: Tensor, into: Tensor): () => void;
  /** Adds up the tensors [size · d, …] of all processes, and returns this one's share of the sum, [d, …]. */
  scatter(tensor: Tensor): Tensor;
  /**
   * Sends a part of the tensor to every process: the first `sends[0]` numbers to rank 0, and so on.
   * @param receives how many numbers come from each process
   * @returns what came, in the order of the ranks
   */
  exchange(tensor: Tensor, sends: readonly number[], receives: readonly number[]): Tensor;
  /** Begins an `exchange`, which goes on while this process computes. @returns what waits for its end; what came lives until it is disposed */
  beginExchange(tensor: Tensor, sends: readonly number[], receives: readonly number[]): () => Tensor;
  /** Replaces the tensor by that of process `from`, in place. */
  broadcast(tensor: Tensor, from?: number): void;
  /** Begins a `broadcast`, which goes on while this process computes. @returns what waits for its end */
  beginBroadcast(tensor: Tensor, from: number): () => void;
  /** Returns what every process gave, by name, in the order of the ranks. */
  agree<K extends string>(values: Readonly<Record<K, number>>): Readonly<Record<K, readonly number[]>>;
  /** Returns the plain data of every process, in the order of the ranks. */
  collect<T>(value: T): readonly T[];
  /** Returns what rank 0 makes, on every process: plain data. The other processes do not call `make`. */
  share<T>(make: () => T): T;
  /** Returns once every process is here. */
  barrier(): void;
  /** What was exchanged so far. */
  readonly traffic: Traffic;
}

/** A group that a process has joined, which it leaves at the end of the block. */
export interface JoinedGroup extends Group, Disposable {
  /**
   * Tells the other processes that this one fails, so that they end too.
   * @returns the error to end with: the given one, or that of the process that failed first
   */
  failed(error: unknown): GraftError;
}

/** The group of this process alone. */
export const oneProcess: Group = {
  rank: 0,
  size: 1,
  localSize: 1,
  sum() {},
  gather: (tensor) => tensor,
  beginGather: (bytes, into) => {
    ops.copy_(into, bytes);
    return () => {};
  },
  scatter: (tensor) => tensor,
  exchange: (tensor) => tensor,
  beginExchange: (tensor) => () => tensor,
  broadcast() {},
  beginBroadcast: () => () => {},
  agree: (values) =>
    Object.fromEntries(Object.entries<number>(values).map(([name, value]) => [name, [value]])) as never,
  collect: (value) => [value],
  share: (make) => make(),
  barrier() {},
  traffic: { sent: 0, received: 0, waited: 0 },
};
