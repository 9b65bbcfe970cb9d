import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { cacheDir, GraftError, makeDirectory } from '../base/index.ts';

/** Where LibTorch was found: `root` has `lib/libtorch_cpu.so` and `include/`. */
export interface LibTorch {
  readonly root: string;
  readonly version: string;
  readonly origin: 'GRAFT_LIBTORCH' | 'python3' | 'download';
}

const minimum = [2, 11];
const pinned = '2.11.0';

/**
 * The wheels that hold LibTorch for CPU use and the two small CUDA libraries that libtorch_cpu.so names (it opens no
 * GPU for that). Any CPython tag carries the same libraries; one is pinned so that the hash can be.
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

/** What of the wheels is kept, as paths inside site-packages: 1.1 GB of CUDA code is not. */
const kept = [
  'torch/include',
  'torch/version.py',
  'torch/lib/libtorch_cpu.so',
  'torch/lib/libc10.so',
  'torch/lib/libgomp.so.1',
  'nvidia/cu13/lib/libcudart.so.13',
  'nvidia/cu13/lib/libcupti.so.13',
] as const;

/** Looks in `GRAFT_LIBTORCH`, then for an earlier download, then for `python3`'s torch. Never touches the network. */
export function findLibTorch(): LibTorch | undefined {
  const named = process.env.GRAFT_LIBTORCH;
  if (named) {
    const root = [named, join(named, 'torch')].find(complete);
    if (!root) {
      throw new GraftError('environment', 'GRAFT_LIBTORCH names no folder with lib/libtorch_cpu.so and include', {
        place: named,
        hint: 'Point it at the `torch` folder of a Python environment, or unset it',
      });
    }
    const version = versionOf(root);
    if (!recent(version)) {
      throw new GraftError(
        'environment',
        `GRAFT_LIBTORCH is LibTorch ${version}, and Graft needs ${minimum.join('.')} or later`,
        {
          place: root,
          hint: 'Point it at a newer one, or unset it to let Graft fetch the right one',
        },
      );
    }
    return { root, version, origin: 'GRAFT_LIBTORCH' };
  }
  // The cache first: asking python3 takes as long as loading LibTorch.
  return cached() ?? pythonTorch();
}

/** Finds LibTorch, or fetches the pinned wheels with pip into the user's cache; `log` is told what takes time. */
export async function ensureLibTorch(log: (line: string) => void): Promise<LibTorch> {
  return findLibTorch() ?? (await fetchLibTorch(log));
}

const complete = (root: string) =>
  existsSync(join(root, 'lib', 'libtorch_cpu.so')) && existsSync(join(root, 'include'));

function recent(version: string): boolean {
  const [major = 0, minor = 0] = version.split('.').map(Number);
  return major > minimum[0]! || (major === minimum[0]! && minor >= minimum[1]!);
}

function versionOf(root: string): string {
  const file = join(root, 'version.py');
  const plain = join(root, 'build-version');
  if (!existsSync(file)) return existsSync(plain) ? readFileSync(plain, 'utf8').trim() : 'of unknown version';
  return /__version__\s*=\s*'([^']+)'/.exec(readFileSync(file, 'utf8'))?.[1] ?? 'of unknown version';
}

function pythonTorch(): LibTorch | undefined {
  // find_spec does not import torch, which would take seconds.
  const script =
    "import importlib.util as u; s=u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')";
  const root = spawnSync('python3', ['-c', script], { encoding: 'utf8' }).stdout?.trim();
  if (!root || !complete(root)) return undefined;
  const version = versionOf(root);
  return recent(version) ? { root, version, origin: 'python3' } : undefined;
}

const cacheRoot = () => cacheDir('libtorch', pinned);

function cached(): LibTorch | undefined {
  const root = join(cacheRoot(), 'torch');
  return existsSync(join(root, 'lib', 'libtorch_cpu.so'))
    ? { root, version: versionOf(root), origin: 'download' }
    : undefined;
}

async function fetchLibTorch(log: (line: string) => void): Promise<LibTorch> {
  const target = cacheRoot();
  makeDirectory(dirname(target));
  const work = mkdtempSync(join(dirname(target), 'fetching-'));
  try {
    log(`Fetching LibTorch ${pinned} once (543 MB, kept in ${target})`);
    // One folder a wheel: pip replaces a top-level folder (nvidia/) that another wheel has filled.
    const sites = wheels.map((_, i) => join(work, `site${i}`));
    for (const [i, { requirement, hash, platform }] of wheels.entries()) {
      const list = join(work, 'requirements.txt');
      writeFileSync(list, `${requirement} --hash=${hash}\n`);
      // prettier-ignore
      await pip([
        'install',
        '--target',
        sites[i]!,
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
        list,
      ]);
    }
    log('Unpacking LibTorch');
    const ready = join(work, 'ready');
    for (const path of kept) {
      const from = sites.map((site) => join(site, path)).find(existsSync);
      if (!from) throw new GraftError('environment', `the fetched wheels hold no ${path}`);
      makeDirectory(dirname(join(ready, path)));
      renameSync(from, join(ready, path));
    }
    rmSync(target, { recursive: true, force: true });
    renameSync(ready, target);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  return cached()!;
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
        new GraftError('environment', `LibTorch could not be fetched: ${problem}`, {
          hint: 'Check the network, or install torch 2.11 yourself (`pip install torch==2.11.0`) and set GRAFT_LIBTORCH to its folder',
          cause,
        }),
      );
    child.on('error', (cause) => fail('python3 with pip is not on the PATH', cause));
    child.on('close', (code) => {
      const last = errors
        .split('\n')
        .filter((line) => /error/i.test(line))
        .at(-1);
      if (code === 0) resolve();
      else if (last?.includes('No matching distribution')) fail('pip reached no index that has it');
      else fail(last?.trim() ?? `pip ended with code ${code}`);
    });
  });
}
