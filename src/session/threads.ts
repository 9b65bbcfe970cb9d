import { currentEngine } from '../engine/index.ts';

/** How many there were before anyone asked for another number. */
let usual: number | undefined;

/** Sets the engine's processor threads; without a number as many as there were at the start. Returns how many there are. */
export function useThreads(count: number | undefined): number {
  const { native } = currentEngine();
  usual ??= native.threads(undefined);
  return native.threads(count ?? usual);
}
