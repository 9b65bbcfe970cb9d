import { threadId } from 'node:worker_threads';
import { GraftError } from '../base/index.ts';
import { type Binding, openAddon } from './binding.ts';
import { addonPath, ensureAddon } from './build.ts';
import { type Cuda, chooseDevice, findCuda, startCuda } from './cuda.ts';
import { ensureLibTorch, findLibTorch, type LibTorch } from './libtorch.ts';
import { type Processor, processor } from './processor.ts';

export type { Binding } from './binding.ts';
export { type Cuda, devicePattern, type Gpu } from './cuda.ts';
export type { LibTorch } from './libtorch.ts';
export { type Processor, processor } from './processor.ts';

/** The engine of this thread. */
export interface Engine {
  /** The functions of the addon; operators are called through `ops`. */
  readonly native: Binding;
  /** The LibTorch that it uses. */
  readonly torch: LibTorch;
  /** Path of the addon. */
  readonly addon: string;
  /** The GPUs of this machine. */
  readonly cuda: Cuda;
}

let engine: Engine | undefined;

/** Options of `startEngine`. */
export interface StartOptions {
  /** Receives a line about each slow step: a download, a build. Default: prints it on stderr. */
  readonly log?: (line: string) => void;
  /** Whether to build the addon even if the cache has it. */
  readonly rebuild?: boolean;
  /** Whether to load LibTorch's CUDA half where there is a GPU, and to download it first where it is missing. Default: true. */
  readonly cuda?: boolean;
}

/**
 * Starts the engine in this thread: finds or downloads LibTorch, builds the addon where it is not built yet, loads both.
 * Call it once before the first tensor; further calls return the same engine.
 * @throws GraftError 'environment' when this machine lacks something: a compiler, the network, a processor with AVX2
 */
export async function startEngine(options: StartOptions = {}): Promise<Engine> {
  if (engine && !options.rebuild) return engine;
  requireProcessor(processor());
  for (const [name, only, instead] of variables) requireKnown(name, only, instead);
  const log = options.log ?? ((line) => console.error(line));
  const torch = await ensureLibTorch(log);
  const addon = await ensureAddon(torch, log, options.rebuild);
  spinBriefly();
  const native = openAddon(addon);
  // Now, because LibTorch remembers at the first use of a device that it has no CUDA.
  const cuda = options.cuda === false ? withoutCuda(findCuda(native)) : await startCuda(native, torch, log);
  engine = { native, torch, addon, cuda };
  for (const listener of startListeners) listener(engine.native);
  return engine;
}

const withoutCuda = (cuda: Cuda): Cuda => ({
  ...cuda,
  problem: cuda.problem ?? new GraftError('state', 'the engine was started without CUDA'),
});

/** Returns the device that `choice` means on this machine: see `chooseDevice`. */
export const deviceOf = (choice: string): string => chooseDevice(currentEngine().cuda, choice);

/** Finds or downloads LibTorch and builds the addon where it is not built yet, so that processes started next need not all do it. */
export async function prepareEngine(log: (line: string) => void): Promise<void> {
  await ensureAddon(await ensureLibTorch(log), log);
}

/** More threads than any processor has; OpenMP fails with many more. */
const maxThreads = 1024;

/** The number of threads at the start of the engine. */
let defaultThreads: number | undefined;

/** Sets how many processor threads the engine uses; undefined restores the number at its start. Returns the number in use. @throws GraftError 'usage' for a number that is not 1 to 1024 */
export function useThreads(count: number | undefined): number {
  if (count !== undefined && !(Number.isInteger(count) && count >= 1 && count <= maxThreads)) {
    throw new GraftError('usage', `threads must be a whole number from 1 to ${maxThreads}, but is ${count}`, {
      place: 'threads',
    });
  }
  const { native } = currentEngine();
  defaultThreads ??= native.threads(undefined);
  return native.threads(count ?? defaultThreads);
}

const startListeners: ((native: Binding) => void)[] = [];

/** Calls `listener` whenever the engine of this thread starts, and immediately if it has started. */
export function onStart(listener: (native: Binding) => void): void {
  startListeners.push(listener);
  if (engine) listener(engine.native);
}

/** Returns the running engine of this thread. @throws GraftError 'state' before `startEngine` */
export function currentEngine(): Engine {
  if (!engine) {
    throw new GraftError('state', `the engine has not started in thread ${threadId}`, {
      hint: 'Await `startEngine()` first',
    });
  }
  return engine;
}

/**
 * Limits how long idle threads of LibTorch's OpenMP runtime spin before they sleep: about 40 µs, which is longer than what JavaScript does between
 * two operators and, on a virtual machine, shorter than waking a thread. Where other programs share the cores, the default lets them spin through
 * whole time slices: decoding fell from 105 to 5 tokens/s. The runtime reads the variable when it is loaded, from the environment of the main
 * thread only.
 */
export function spinBriefly(): void {
  process.env.GOMP_SPINCOUNT ??= '4000';
}

/** Returns the LibTorch and the addon that a start would use, without a download or a build. */
export function engineStatus(): { torch: LibTorch | undefined; addon: string | undefined } {
  const torch = findLibTorch();
  return { torch, addon: torch && addonPath(torch) };
}

/** Variables of the environment that choose kernels, with the value that each takes, and what there is without it. */
const variables = [
  ['GRAFT_MKL', 'generic', "MKL's kernels for this processor"],
  ['GRAFT_COMPOSITE', '1', 'our own kernels on a GPU'],
] as const;

/** @throws GraftError 'usage' for a value that would be ignored */
function requireKnown(name: string, only: string, instead: string): void {
  const choice = process.env[name];
  if (!choice || choice === only) return;
  throw new GraftError('usage', `${name} is '${choice}', and the only value that it takes is ${only}`, {
    hint: `Unset it for ${instead}`,
  });
}

function requireProcessor({ model, features }: Processor): void {
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    throw new GraftError(
      'environment',
      `Graft supports Linux on x86-64 only, and this is ${process.platform} ${process.arch}`,
    );
  }
  if (!features.avx2 || !features.fma) {
    throw new GraftError(
      'environment',
      `Graft needs a processor with AVX2 and FMA, and this one (${model}) lacks them`,
    );
  }
}
