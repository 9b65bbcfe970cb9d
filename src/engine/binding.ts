import { createRequire } from 'node:module';
import { GraftError } from '../base/index.ts';

/** The functions that the addon exports, as the table in native/src/addon.cc lists them. A tensor is a handle: a small integer. */
export interface Binding {
  resolve(ops: readonly string[]): void;
  call(op: number, ...args: unknown[]): unknown;
  schema(op: string): string;
  /** Default of `device`: that of new tensors. Pinned memory is the host's, and a GPU copies from it without the processor. */
  empty(shape: readonly number[], dtype: number, device?: string, pinned?: boolean): number;
  free(handles: Uint32Array, count: number): void;
  /** Returns the number by which another thread of the process takes tensors that have the same memory, once. */
  give(handles: Uint32Array): number;
  take(number: number): Uint32Array;
  describe(handle: number): number[];
  device(handle: number): string;
  to(handle: number, device: string): number;
  buffer(handle: number): ArrayBuffer;
  copy(handle: number, bytes: Uint8Array, toTensor: boolean): void;
  item(handle: number): number;
  /** Gives a tensor and all that shares its memory that of another tensor, which has none then. */
  moveMemory(handle: number, from: number): void;
  /** Takes the memory of a tensor and of all that shares it. Returns a tensor of its bytes. */
  takeMemory(handle: number): number;
  /** Whether something else has the memory of this tensor too: a view, a graph. */
  isShared(handle: number): boolean;
  checkpoint(
    inputs: readonly number[],
    outputs: readonly number[],
    replay: (inputs: number[], gradients: (number | null)[]) => void,
  ): number[];
  backward(roots: readonly number[], seeds: readonly number[]): void;
  grad(handle: number): number | null;
  setGrad(handle: number, grad: number | null): void;
  onGradient(leaf: number, hook: (() => void) | null): void;
  requiresGrad(handle: number): boolean;
  setRequiresGrad(handle: number, flag: boolean): void;
  setGradEnabled(flag: boolean): boolean;
  generator(seed: bigint): number;
  freeGenerator(index: number): void;
  manualSeed(seed: bigint): void;
  randomState(state?: ArrayBuffer): ArrayBuffer;
  threads(count?: number): number;
  memory(): { handles: number; bytes: number };
  /**
   * Returns the bytes of all tensors on the device of new tensors, those that autograd keeps included: now, and at most since the last
   * call. On the processor: of this thread.
   */
  allocated(): { now: number; peak: number };
  trim(): void;
  /**
   * A tensor on bytes of an open file, which may be closed afterwards. Shared: what is written to it goes to the file; else it stays in memory.
   */
  map(file: number, at: number, shape: readonly number[], dtype: number, shared: boolean): number;
  /** Takes room on the disk for some bytes of a file. Returns 0, or the number of the system's error. */
  allocate(file: number, at: number, bytes: number): number;
  /** Begins to write a tensor on a shared mapping to its file, and takes its pages off this process. */
  writeBack(handle: number, file: number, at: number): void;
  /** Opens the key-value store of several processes, or hosts it. Returns the number of the process group, which is not connected yet. */
  storeOpen(host: string, port: number, server: boolean, rank: number, milliseconds: number): number;
  storeSet(group: number, key: string, value: string): void;
  /** Sets a key that has no value yet. Returns the value that it has now. */
  storeSetOnce(group: number, key: string, value: string): string;
  /** Waits so long for the key to be set; null: it was not. */
  storeGet(group: number, key: string, milliseconds: number): string | null;
  /** The address of this machine on the way to that host. */
  addressTowards(host: string, port: number): string;
  /**
   * Connects to all others. `prefix` of the group's keys in the store; `name` by which operators find the group. 'alarm': another process
   * has failed or lost one.
   */
  groupConnect(
    group: number,
    size: number,
    address: string | null,
    milliseconds: number,
    prefix: string,
    name: string,
  ): 'done' | 'alarm' | 'late';
  /** Waits for a collective by the tensor that it fills. 'alarm': another process has failed or lost one. */
  groupWait(group: number, handle: number, milliseconds: number): 'done' | 'alarm' | 'late';
  groupClose(group: number, allEnded: boolean): void;
  /** Returns whether the AVX-512 versions of our kernels are taken, and whether MKL takes those for this processor. */
  kernels(): { avx512: boolean; mkl: boolean };
  /** Asks NVIDIA's driver for its version (13000: CUDA 13.0) and its GPUs; null: there is none. */
  cudaDriver(): {
    version: number;
    gpus: { name: string; bytes: number; major: number; minor: number }[];
    problem?: string;
  } | null;
  /** Loads libtorch_cuda.so; before the first tensor. */
  loadCuda(path: string): void;
  /** Loads NVRTC, the last of these libraries, which compiles the kernels of a folder when an operator first needs them on a GPU. */
  loadNvrtc(libraries: readonly string[], sources: string): void;
  /** Compiles instances of a file's kernels for an architecture such as sm_90. The log has the registers that they take, under these symbols. */
  compileKernels(file: string, instances: readonly string[], architecture: string): { log: string; symbols: string[] };
  /** Has this thread's operators run the kernels for GPUs on the processor, from a library that was compiled for it: for tests. */
  useHostKernels(library?: string): void;
  /** Sets the device of new tensors of this thread. Returns the one before. */
  useDevice(device?: string): string;
  /** Sets whether products on the device of new tensors take factors of any type and round them to bfloat16 (LibTorch's autocast). */
  roundProducts(flag: boolean): void;
  /** Returns the memory of the GPU that new tensors are on, in bytes. */
  deviceMemory(): { free: number; total: number };
  /** Returns whether a kernel of an operator is registered for a dispatch key of LibTorch, such as CUDA, or one made of other operators. */
  hasKernel(op: string, key: string): boolean;
  /** Returns how often `body` runs each operator in this thread, those inside of others and of backward passes included. */
  recordOperators(body: () => void): Record<string, number>;
  /** Returns how often numbers have gone to tensors, and come back; the processor counts as a device. */
  transfers(): { toDevice: number; toHost: number };
  onError(createError: (op: string, message: string, shapes: string) => Error): void;
}

/**
 * Loads a built addon. This is the only function that knows a `.node` file.
 * @throws GraftError 'environment' when it cannot be loaded
 */
export function openAddon(path: string): Binding {
  let binding: Binding;
  try {
    binding = createRequire(import.meta.url)(path) as Binding;
  } catch (cause) {
    throw new GraftError('environment', `the native addon could not be loaded: ${(cause as Error).message}`, {
      place: path,
      hint: 'Run `graft doctor --rebuild` to build it again',
      cause,
    });
  }
  binding.onError((op, message, shapes) => {
    const firstLine = message.split('\n')[0] ?? message;
    return new GraftError('engine', `${op}: ${firstLine}${shapes ? ` (got ${shapes})` : ''}`, {
      data: { op, message, shapes },
    });
  });
  return binding;
}
