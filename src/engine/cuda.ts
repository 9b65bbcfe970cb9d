import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError, packageRoot } from '../base/index.ts';
import type { Binding } from './binding.ts';
import { ensureCuda, type LibTorch } from './libtorch.ts';

/** An NVIDIA GPU, as its driver describes it. */
export interface Gpu {
  /** The name of the product. */
  readonly name: string;
  /** Its memory, in bytes. */
  readonly bytes: number;
  /** Its compute capability, such as 9.0: which instructions it has. */
  readonly capability: number;
}

/** What this machine has of CUDA. */
export interface Cuda {
  /** The version of CUDA that the driver supports, such as 13.0; undefined: there is no driver. */
  readonly driver: number | undefined;
  /** The GPUs that the driver shows to this process, in its order: `cuda:0`, `cuda:1`. */
  readonly gpus: readonly Gpu[];
  /** Why none of them can be used; undefined where one can. */
  readonly problem: GraftError | undefined;
}

/** The version of CUDA that the pinned LibTorch was built with, and the first driver that supports it. */
const cudaVersion = 13.0;
const firstDriver = 580;
/** The lowest compute capability that the pinned LibTorch has code for: Turing. */
const lowestCapability = 7.5;

const environment = (problem: string, hint?: string) => new GraftError('environment', problem, hint ? { hint } : {});

const withoutCode = ({ name, capability }: Gpu) =>
  environment(
    `LibTorch has no code for the ${name}: its compute capability is ${capability.toFixed(1)}, and the lowest is ${lowestCapability}`,
  );

/** Asks the driver what there is. Nothing of LibTorch's CUDA half is needed for that, or loaded. */
export function findCuda(native: Binding): Cuda {
  const found = native.cudaDriver();
  if (!found) {
    return { driver: undefined, gpus: [], problem: environment('this machine has no NVIDIA driver (libcuda.so.1)') };
  }
  const driver = Math.floor(found.version / 1000) + (Math.floor(found.version / 10) % 100) / 10;
  const gpus = found.gpus.map(
    ({ name, bytes, major, minor }): Gpu => ({ name, bytes, capability: major + minor / 10 }),
  );
  return { driver, gpus, problem: problemOf(driver, gpus, found.problem) };
}

function problemOf(driver: number, gpus: readonly Gpu[], failure: string | undefined): GraftError | undefined {
  if (driver < cudaVersion) {
    return environment(
      `the NVIDIA driver supports CUDA ${driver.toFixed(1)}, and LibTorch needs ${cudaVersion.toFixed(1)}`,
      `Install a driver of version ${firstDriver} or later`,
    );
  }
  if (failure !== undefined) return environment(`the NVIDIA driver does not start: ${failure}`);
  if (gpus.length === 0) {
    return environment('the NVIDIA driver shows no GPU', 'Look at CUDA_VISIBLE_DEVICES, and at what nvidia-smi says');
  }
  return gpus.some(isSupported) ? undefined : withoutCode(gpus[0]!);
}

const isSupported = ({ capability }: Gpu) => capability >= lowestCapability;

/** The sources of our kernels for GPUs, which NVRTC compiles on the machine that has one. */
export const kernelSources = join(packageRoot, 'native', 'cuda');

/**
 * Returns the library that NVRTC opens, and NVRTC: of the package beside torch, which LibTorch's CUDA half needs too, else where the
 * system looks for libraries.
 */
export function nvrtcLibraries(torchRoot: string): string[] {
  const folder = join(torchRoot, '..', 'nvidia', 'cu13', 'lib');
  const names = ['libnvrtc-builtins.so.13.0', 'libnvrtc.so.13'];
  return existsSync(join(folder, names[1]!)) ? names.map((name) => join(folder, name)) : names;
}

/**
 * Finds what there is, and loads LibTorch's CUDA half where a GPU can be used. Where that fails, the result says why.
 * @param log receives the size of a download, and beside a driver the reason why no GPU can be used
 */
export async function startCuda(native: Binding, torch: LibTorch, log: (line: string) => void): Promise<Cuda> {
  const found = findCuda(native);
  const cuda = found.problem ? found : await loadCuda(found, native, torch, log);
  if (cuda.driver !== undefined && cuda.problem) log(`No GPU is used: ${cuda.problem.message}`);
  return cuda;
}

async function loadCuda(cuda: Cuda, native: Binding, torch: LibTorch, log: (line: string) => void): Promise<Cuda> {
  try {
    native.loadCuda(await ensureCuda(torch, log));
    native.loadNvrtc(nvrtcLibraries(torch.root), kernelSources);
    return cuda;
  } catch (cause) {
    const missing = /^CUDA: (\S+\.so\S*): cannot open/.exec((cause as Error).message)?.[1];
    const problem = missing
      ? environment(
          `LibTorch's CUDA half needs ${missing}, which was not found`,
          'Install torch with its nvidia-* packages',
        )
      : GraftError.of(cause);
    return { ...cuda, problem };
  }
}

/** What a recipe or `--device` may say. */
export const devicePattern = /^(auto|cpu|cuda(:\d+)?)$/;

/**
 * Returns the device that a choice means: cpu, or a GPU as `cuda:0`. `auto`: the first GPU that can be used, else cpu.
 * @throws GraftError 'usage' for a GPU that is not there, 'environment' where none can be used
 */
export function chooseDevice({ gpus, problem }: Cuda, choice: string): string {
  if (!devicePattern.test(choice)) {
    throw new GraftError('usage', `there is no device '${choice}'`, { hint: 'Choose auto, cpu, cuda, or cuda:1' });
  }
  if (choice === 'cpu' || (choice === 'auto' && problem)) return 'cpu';
  if (problem) throw problem;
  const index = choice.includes(':') ? Number(choice.slice('cuda:'.length)) : gpus.findIndex(isSupported);
  const gpu = gpus[index];
  if (gpu && !isSupported(gpu)) throw withoutCode(gpu);
  if (gpu) return `cuda:${index}`;
  const names = gpus.map((_, i) => `cuda:${i}`).join(', ');
  throw new GraftError('usage', `there is no ${choice}: this machine has ${names}`);
}
