import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { cacheDir, GraftError, makeDirectory, waitForLock } from '../base/index.ts';
import { fetchWheels, type Wheel } from './wheels.ts';

/** A LibTorch on this machine: `root` contains `lib/libtorch_cpu.so` and `include/`. */
export interface LibTorch {
  /** The directory that contains `lib/` and `include/`. */
  readonly root: string;
  /** Its version, such as 2.11.0. */
  readonly version: string;
  /** How it was found: by the environment variable, in Python's packages, or as a download of Graft. */
  readonly origin: 'GRAFT_LIBTORCH' | 'python3' | 'download';
}

const minimumVersion = [2, 11] as const;
const pinnedVersion = '2.11.0';

/**
 * The Python wheels with LibTorch for the CPU and the two small CUDA libraries that libtorch_cpu.so is linked to (it does
 * not open a GPU). The wheels of all CPython versions have the same libraries; one is pinned, so that its hash can be.
 */
const wheels: readonly Wheel[] = [
  {
    requirement: 'torch==2.11.0',
    sha256: '7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a',
  },
  {
    requirement: 'nvidia-cuda-runtime==13.0.96',
    sha256: '7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548',
  },
  {
    requirement: 'nvidia-cuda-cupti==13.0.85',
    sha256: '4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8',
  },
];

/** The paths inside site-packages that are kept; 1.1 GB of CUDA code is not. */
const keptPaths = [
  'torch/include',
  'torch/version.py',
  'torch/lib/libtorch_cpu.so',
  'torch/lib/libc10.so',
  'torch/lib/libgomp.so.1',
  'nvidia/cu13/lib/libcudart.so.13',
  'nvidia/cu13/lib/libcupti.so.13',
] as const;

/**
 * The wheels with LibTorch's CUDA half: torch itself, and what libtorch_cuda.so is linked to (`ldd`) or opens when it first needs it
 * (libtorch_cuda_linalg.so: cusolver; libcaffe2_nvrtc.so: nvrtc), in the versions of its metadata.
 */
const cudaWheels: readonly Wheel[] = [
  wheels[0]!,
  {
    requirement: 'nvidia-cublas==13.1.0.3',
    sha256: 'ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171',
  },
  {
    requirement: 'nvidia-cuda-nvrtc==13.0.88',
    sha256: 'ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575',
  },
  {
    requirement: 'nvidia-cudnn-cu13==9.19.0.56',
    sha256: 'd20e1734305e9d68889a96e3f35094d733ff1f83932ebe462753973e53a572bf',
  },
  {
    requirement: 'nvidia-cufft==12.0.0.61',
    sha256: '6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3',
  },
  {
    requirement: 'nvidia-cufile==1.15.1.6',
    sha256: '08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44',
  },
  {
    requirement: 'nvidia-curand==10.4.0.35',
    sha256: '1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc',
  },
  {
    requirement: 'nvidia-cusolver==12.0.4.66',
    sha256: '0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112',
  },
  {
    requirement: 'nvidia-cusparse==12.6.3.3',
    sha256: '2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b',
  },
  {
    requirement: 'nvidia-cusparselt-cu13==0.8.0',
    sha256: '25e30a8a7323935d4ad0340b95a0b69926eee755767e8e0b1cf8dd85b197d3fd',
  },
  {
    requirement: 'nvidia-nccl-cu13==2.28.9',
    sha256: 'e4553a30f34195f3fa1da02a6da3d6337d28f2003943aa0a3d247bbc25fefc42',
  },
  {
    requirement: 'nvidia-nvjitlink==13.0.88',
    sha256: '13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b',
  },
  {
    requirement: 'nvidia-nvshmem-cu13==3.4.5',
    sha256: '290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80',
  },
];

const librariesIn = (dir: string, names: readonly string[]) => names.map((name) => `${dir}/lib${name}`);
const cudnn = ['adv', 'cnn', 'engines_precompiled', 'engines_runtime_compiled', 'graph', 'heuristic', 'ops'];

/** What of these wheels is kept; the library that needs all others is the last. */
const cudaPaths: readonly string[] = [
  ...librariesIn('nvidia/cu13/lib', [
    'cublas.so.13',
    'cublasLt.so.13',
    'cufft.so.12',
    'cufile.so.0',
    'curand.so.10',
    'cusolver.so.12',
    'cusparse.so.12',
    'nvJitLink.so.13',
    'nvrtc.so.13',
    'nvrtc-builtins.so.13.0',
  ]),
  ...librariesIn('nvidia/cudnn/lib', ['cudnn.so.9', ...cudnn.map((part) => `cudnn_${part}.so.9`)]),
  'nvidia/cusparselt/lib/libcusparseLt.so.0',
  'nvidia/nccl/lib/libnccl.so.2',
  'nvidia/nvshmem/lib/libnvshmem_host.so.3',
  ...librariesIn('torch/lib', [
    'c10_cuda.so',
    'torch_nvshmem.so',
    'torch_cuda_linalg.so',
    'caffe2_nvrtc.so',
    'torch_cuda.so',
  ]),
];

/**
 * Returns the LibTorch that `GRAFT_LIBTORCH` names, else an earlier download, else the torch of `python3`; undefined where
 * there is none. It never uses the network.
 * @throws GraftError 'environment' where `GRAFT_LIBTORCH` names no LibTorch, or one that is too old
 */
export function findLibTorch(): LibTorch | undefined {
  const configuredDir = process.env.GRAFT_LIBTORCH;
  if (configuredDir) {
    // Absolute: the addon is linked to it, and found again by it.
    const root = [resolve(configuredDir), resolve(configuredDir, 'torch')].find(isComplete);
    if (!root) {
      throw new GraftError('environment', 'GRAFT_LIBTORCH names no directory with lib/libtorch_cpu.so and include/', {
        place: configuredDir,
        hint: 'Set it to the `torch` directory in the site-packages of a Python environment, or unset it',
      });
    }
    const version = versionOf(root);
    if (!isSupported(version)) {
      throw new GraftError(
        'environment',
        `GRAFT_LIBTORCH is LibTorch ${version}, and Graft needs ${minimumVersion.join('.')} or later`,
        {
          place: root,
          hint: 'Set it to a newer one, or unset it to let Graft download the right version',
        },
      );
    }
    return { root, version, origin: 'GRAFT_LIBTORCH' };
  }
  // The cache is searched first: to ask python3 takes as long as to load LibTorch.
  return cachedTorch() ?? pythonTorch();
}

/**
 * Returns the LibTorch of `findLibTorch`, or downloads the pinned wheels with pip into the user's cache.
 * @param log receives a line about each slow step
 * @throws GraftError 'environment' where pip is missing or cannot download them
 */
export async function ensureLibTorch(log: (line: string) => void): Promise<LibTorch> {
  return findLibTorch() ?? (await downloadLibTorch(log));
}

const isComplete = (root: string) =>
  existsSync(join(root, 'lib', 'libtorch_cpu.so')) && existsSync(join(root, 'include'));

function isSupported(version: string): boolean {
  const [major = 0, minor = 0] = version.split('.').map(Number);
  const [minimumMajor, minimumMinor] = minimumVersion;
  return major > minimumMajor || (major === minimumMajor && minor >= minimumMinor);
}

function versionOf(root: string): string {
  const pythonFile = join(root, 'version.py');
  const plainFile = join(root, 'build-version');
  if (!existsSync(pythonFile))
    return existsSync(plainFile) ? readFileSync(plainFile, 'utf8').trim() : 'of unknown version';
  return /__version__\s*=\s*'([^']+)'/.exec(readFileSync(pythonFile, 'utf8'))?.[1] ?? 'of unknown version';
}

function pythonTorch(): LibTorch | undefined {
  // find_spec does not import torch, which would take seconds.
  const script =
    "import importlib.util as u; s=u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')";
  const root = spawnSync('python3', ['-c', script], { encoding: 'utf8' }).stdout?.trim();
  if (!root || !isComplete(root)) return undefined;
  const version = versionOf(root);
  return isSupported(version) ? { root, version, origin: 'python3' } : undefined;
}

const cacheRoot = () => cacheDir('libtorch', pinnedVersion);

function cachedTorch(): LibTorch | undefined {
  const root = join(cacheRoot(), 'torch');
  return existsSync(join(root, 'lib', 'libtorch_cpu.so'))
    ? { root, version: versionOf(root), origin: 'download' }
    : undefined;
}

/** Lets one process download, and the others wait. */
function downloadLock(log: (line: string) => void): Promise<Disposable> {
  makeDirectory(dirname(cacheRoot()));
  const dir = join(dirname(cacheRoot()), 'downloading');
  return waitForLock(dir, (holder) => log(`Waiting for LibTorch, which ${holder}, is downloading`));
}

async function downloadLibTorch(log: (line: string) => void): Promise<LibTorch> {
  const target = cacheRoot();
  using _lock = await downloadLock(log);
  const there = cachedTorch();
  if (there) return there;
  const workDir = mkdtempSync(join(dirname(target), 'unpacking-'));
  try {
    log(`Downloading LibTorch ${pinnedVersion} to ${target} (543 MB, once)`);
    const readyDir = join(workDir, 'ready');
    await fetchWheels(wheels, keptPaths, readyDir);
    rmSync(target, { recursive: true, force: true });
    renameSync(readyDir, target);
  } finally {
    rmSync(workDir, { recursive: true, force: true });
  }
  return cachedTorch()!;
}

const cudaLibrary = ({ root }: LibTorch) => join(root, 'lib', 'libtorch_cuda.so');

/**
 * Returns the path of libtorch_cuda.so, which computes on NVIDIA GPUs; it and what it needs are downloaded where Graft downloaded the
 * rest of LibTorch.
 * @param log receives a line with the size before the download
 * @throws GraftError 'environment' where it cannot be downloaded, and where another LibTorch than Graft's was built without it
 */
export async function ensureCuda(torch: LibTorch, log: (line: string) => void): Promise<string> {
  const library = cudaLibrary(torch);
  if (existsSync(library)) return library;
  if (torch.origin !== 'download') {
    throw new GraftError(
      'environment',
      `LibTorch ${torch.version} was built without CUDA: it has no libtorch_cuda.so`,
      {
        place: torch.root,
        hint: 'Install the torch of PyPI for Linux, which has it, or use --device cpu',
      },
    );
  }
  using _lock = await downloadLock(log);
  if (existsSync(library)) return library;
  log(`Downloading LibTorch's CUDA half and NVIDIA's libraries to ${cacheRoot()} (2.5 GB, once)`);
  await fetchWheels(cudaWheels, cudaPaths, cacheRoot());
  return library;
}
