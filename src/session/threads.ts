import { currentEngine } from '../engine/index.ts';

/** Sets the engine's processor threads, if a number is given. Returns how many there are. */
export const useThreads = (count: number | undefined): number => currentEngine().native.threads(count);
