import { threadId } from 'node:worker_threads';
import { GraftError } from '../base/index.ts';
import { type Binding, openAddon } from './binding.ts';
import { addonPath, ensureAddon } from './build.ts';
import { ensureLibTorch, findLibTorch, type LibTorch } from './libtorch.ts';
import { type Processor, processor } from './processor.ts';

export type { Binding } from './binding.ts';
export type { LibTorch } from './libtorch.ts';
export { type Processor, processor } from './processor.ts';

export interface Engine {
  readonly native: Binding;
  readonly torch: LibTorch;
  readonly addon: string;
}

let engine: Engine | undefined;

export interface StartOptions {
  /** Is told what takes time: a download, a build. Default: a line on stderr. */
  readonly log?: (line: string) => void;
  /** Build the addon even if the cache has it. */
  readonly rebuild?: boolean;
}

/**
 * Starts the engine in this thread: finds or fetches LibTorch, builds the addon where it is not built yet, loads both.
 * Call it once before the first tensor; further calls return the same engine.
 */
export async function startEngine(options: StartOptions = {}): Promise<Engine> {
  if (engine && !options.rebuild) return engine;
  requireProcessor(processor());
  const log = options.log ?? ((line) => console.error(line));
  const torch = await ensureLibTorch(log);
  const addon = await ensureAddon(torch, log, options.rebuild);
  spinBriefly();
  engine = { native: openAddon(addon), torch, addon };
  for (const ready of waiting) ready(engine.native);
  return engine;
}

/** How many threads there were before anyone asked for another number. */
let usual: number | undefined;

/** Sets the engine's processor threads; without a number as many as there were at the start. Returns how many there are. */
export function useThreads(count: number | undefined): number {
  const { native } = currentEngine();
  usual ??= native.threads(undefined);
  return native.threads(count ?? usual);
}

const waiting: ((native: Binding) => void)[] = [];

/** Calls `ready` once the engine of this thread has started (at once if it has). */
export function onStart(ready: (native: Binding) => void): void {
  waiting.push(ready);
  if (engine) ready(engine.native);
}

/** The running engine of this thread. @throws GraftError 'state' before `startEngine` */
export function currentEngine(): Engine {
  if (!engine) {
    throw new GraftError('state', `the engine has not started in thread ${threadId}`, {
      hint: 'Await `startEngine()` first',
    });
  }
  return engine;
}

/**
 * Idle threads of LibTorch's OpenMP runtime spin for a while before they sleep. Where other programs share the cores, its
 * default makes them spin through whole time slices: decoding fell from 105 to 5 tokens/s. The runtime reads the variable
 * when it is loaded, and only that of the main thread.
 */
export function spinBriefly(): void {
  process.env.GOMP_SPINCOUNT ??= '1000';
}

/** What a start would use, without fetching or building anything. */
export function engineStatus(): { torch: LibTorch | undefined; addon: string | undefined } {
  const torch = findLibTorch();
  return { torch, addon: torch && addonPath(torch) };
}

function requireProcessor({ model, features }: Processor): void {
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    throw new GraftError(
      'environment',
      `Graft runs on Linux x86-64 for now, and this is ${process.platform} ${process.arch}`,
    );
  }
  if (!features.avx2 || !features.fma) {
    throw new GraftError('environment', `Graft's kernels need AVX2 and FMA, which this processor (${model}) lacks`);
  }
}
