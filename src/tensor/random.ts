import { currentEngine } from '../engine/index.ts';

/** A seeded stream of random numbers for the operators that take one; independent of every other generator. */
export class Generator implements Disposable {
  readonly id: number;

  constructor(seed: number | bigint) {
    this.id = currentEngine().native.generator(BigInt.asUintN(64, BigInt(seed)));
  }

  [Symbol.dispose](): void {
    currentEngine().native.freeGenerator(this.id);
  }
}

/**
 * A seed from a seed and the place where it is used: the same numbers give the same seed, and a change in one gives an
 * unrelated one. So a run needs no generator state to resume: step 17's dropout follows from `mixSeed(seed, 17, …)`.
 * The mixing step is splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").
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

/** Seeds the generator that operators use when they are given none (dropout). */
export function manualSeed(seed: number | bigint): void {
  currentEngine().native.manualSeed(BigInt.asUintN(64, BigInt(seed)));
}
