import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { cacheDir, GraftError, makeDirectory } from '../base/index.ts';

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
const wheels = [
  {
    requirement: 'torch==2.11.0',
    hash: 'sha256:7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a',
    platform: 'manylinux_2_28_x86_64',
  },
  {
    requirement: 'nvidia-cuda-runtime==13.0.96',
    hash: 'sha256:7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548',
    platform: 'manylinux_2_17_x86_64',
  },
  {
    requirement: 'nvidia-cuda-cupti==13.0.85',
    hash: 'sha256:4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8',
    platform: 'manylinux_2_25_x86_64',
  },
] as const;

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

async function downloadLibTorch(log: (line: string) => void): Promise<LibTorch> {
  const target = cacheRoot();
  makeDirectory(dirname(target));
  const workDir = mkdtempSync(join(dirname(target), 'fetching-'));
  try {
    log(`Downloading LibTorch ${pinnedVersion} to ${target} (543 MB, once)`);
    // One directory for each wheel: pip replaces a top-level directory (nvidia/) that another wheel has filled.
    const siteDirs = wheels.map((_, i) => join(workDir, `site${i}`));
    for (const [i, { requirement, hash, platform }] of wheels.entries()) {
      const requirements = join(workDir, 'requirements.txt');
      writeFileSync(requirements, `${requirement} --hash=${hash}\n`);
      // prettier-ignore
      await pip([
        'install',
        '--target',
        siteDirs[i]!,
        '--require-hashes',
        '--no-deps',
        '--no-compile',
        '--only-binary=:all:',
        '--implementation',
        'cp',
        '--python-version',
        '3.11',
        '--abi',
        'cp311',
        '--abi',
        'none',
        '--platform',
        platform,
        '--no-cache-dir',
        '--disable-pip-version-check',
        '-r',
        requirements,
      ]);
    }
    log('Unpacking LibTorch');
    const readyDir = join(workDir, 'ready');
    for (const path of keptPaths) {
      const source = siteDirs.map((dir) => join(dir, path)).find(existsSync);
      if (!source) throw new GraftError('environment', `the downloaded wheels do not contain ${path}`);
      makeDirectory(dirname(join(readyDir, path)));
      renameSync(source, join(readyDir, path));
    }
    rmSync(target, { recursive: true, force: true });
    renameSync(readyDir, target);
  } finally {
    rmSync(workDir, { recursive: true, force: true });
  }
  return cachedTorch()!;
}

function pip(args: readonly string[]): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn('python3', ['-m', 'pip', ...args], { stdio: ['ignore', 2, 'pipe'] as const });
    let errors = '';
    child.stderr?.on('data', (chunk: Buffer) => {
      errors += chunk;
    });
    const fail = (problem: string, cause?: unknown) =>
      reject(
        new GraftError('environment', `LibTorch could not be downloaded: ${problem}`, {
          hint: 'Check the network, or install torch 2.11 yourself (`pip install torch==2.11.0`) and set GRAFT_LIBTORCH to its directory',
          cause,
        }),
      );
    child.on('error', (cause) => fail('python3 with pip is not on the PATH', cause));
    child.on('close', (code) => {
      const lastError = errors
        .split('\n')
        .filter((line) => /error/i.test(line))
        .at(-1);
      if (code === 0) resolve();
      else if (lastError?.includes('No matching distribution')) fail('pip found it in no package index');
      else fail(lastError?.trim() ?? `pip failed with exit code ${code}`);
    });
  });
}
