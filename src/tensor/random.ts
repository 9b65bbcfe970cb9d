import { currentEngine } from '../engine/index.ts';

/**
 * A seeded random generator for the operators that take one, independent of every other generator. Its numbers are drawn on the CPU and
 * copied, so that a seed gives the same ones on every device.
 */
export class Generator implements Disposable {
  /** The native handle. */
  readonly id: number;

  /** Makes a generator; equal seeds give equal numbers. */
  constructor(seed: number | bigint) {
    this.id = currentEngine().native.generator(BigInt.asUintN(64, BigInt(seed)));
  }

  [Symbol.dispose](): void {
    currentEngine().native.freeGenerator(this.id);
  }
}

/**
 * Returns a seed that follows from several numbers: equal numbers give equal seeds, and a change of one gives an unrelated
 * seed. So a run resumes without the state of a generator: the dropout of step 17 follows from `mixSeed(seed, 17, …)`.
 * The mixing function is splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").
 */
export function mixSeed(...parts: readonly (number | bigint)[]): bigint {
  let state = 0n;
  for (const part of parts) {
    state = BigInt.asUintN(64, (state ^ BigInt.asUintN(64, BigInt(part))) + 0x9e3779b97f4a7c15n);
    state = BigInt.asUintN(64, (state ^ (state >> 30n)) * 0xbf58476d1ce4e5b9n);
    state = BigInt.asUintN(64, (state ^ (state >> 27n)) * 0x94d049bb133111ebn);
    state ^= state >> 31n;
  }
  return state;
}

/**
 * Seeds this thread's generators, one for each device, which operators use where none is passed (dropout). Other threads have their
 * own. Devices draw different numbers from the same seed.
 */
export function manualSeed(seed: number | bigint): void {
  currentEngine().native.manualSeed(BigInt.asUintN(64, BigInt(seed)));
}

/** Returns the state of this thread's generator of the device of new tensors, which changes when numbers are drawn. */
export const randomState = (): ArrayBuffer => currentEngine().native.randomState();
