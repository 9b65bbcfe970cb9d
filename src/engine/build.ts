import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  copyFileSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { cacheDir, GraftError, makeDirectory, packageRoot } from '../base/index.ts';
import type { LibTorch } from './libtorch.ts';

const sources = join(packageRoot, 'native');
const headerPackages = ['node-api-headers', 'node-addon-api'] as const;

/** Every source file of the addon, in a fixed order. */
function sourceFiles(dir = sources): string[] {
  return readdirSync(dir, { withFileTypes: true })
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .flatMap((entry) => (entry.isDirectory() ? sourceFiles(join(dir, entry.name)) : [join(dir, entry.name)]))
    .filter((file) => /\.(cc|h|txt)$/.test(file));
}

function headerDir(name: string): string {
  const root = dirname(createRequire(import.meta.url).resolve(`${name}/package.json`));
  return name === 'node-api-headers' ? join(root, 'include') : root;
}

/** The addon's place in the cache: its name is a hash of all that goes into it, so a change builds anew. */
export function addonPath(torch: LibTorch): string {
  const hash = createHash('sha256').update(`${torch.root}\n${torch.version}\n${process.platform} ${process.arch}\n`);
  hash.update(String(statSync(join(torch.root, 'lib', 'libtorch_cpu.so')).size));
  for (const file of sourceFiles()) hash.update(file.slice(sources.length)).update(readFileSync(file));
  return join(cacheDir('addon', hash.digest('hex').slice(0, 16)), 'graft.node');
}

/**
 * Builds the addon with CMake unless the cache has it already.
 * @param log is told when a build starts (it takes about a minute)
 * @throws GraftError 'environment' when a compiler or CMake is missing, or with the compiler's first error
 */
export async function ensureAddon(torch: LibTorch, log: (line: string) => void, rebuild = false): Promise<string> {
  const addon = addonPath(torch);
  if (existsSync(addon) && !rebuild) return addon;
  requireTools();
  log('Building the native addon once (about a minute)');
  makeDirectory(cacheDir('addon'));
  // GRAFT_BUILD_DIR keeps CMake's folder between builds: for those who change native/ and want only that compiled.
  const keep = process.env.GRAFT_BUILD_DIR;
  const work = keep ?? mkdtempSync(join(cacheDir('addon'), 'building-'));
  try {
    const headers = headerPackages.map(headerDir).join(';');
    await run('cmake', ['-S', sources, '-B', work, `-DLIBTORCH=${torch.root}`, `-DNODE_HEADERS=${headers}`]);
    await run('cmake', ['--build', work, '--parallel', String(availableParallelism())]);
    makeDirectory(dirname(addon));
    copyFileSync(join(work, 'graft.node'), `${addon}.${process.pid}`);
    renameSync(`${addon}.${process.pid}`, addon);
  } finally {
    if (!keep) rmSync(work, { recursive: true, force: true });
  }
  return addon;
}

function requireTools(): void {
  const works = (command: string) => spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0;
  const compiler = process.env.CXX ?? 'c++';
  const missing = [...(works('cmake') ? [] : ['CMake']), ...(works(compiler) ? [] : [`a C++ compiler (${compiler})`])];
  if (missing.length > 0) {
    throw new GraftError(
      'environment',
      `the native addon has to be built once, and this machine lacks ${missing.join(' and ')}`,
      {
        hint: 'Install them, on Debian or Ubuntu with `apt-get install g++ cmake`, and run the command again',
      },
    );
  }
}

function run(command: string, args: readonly string[]): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    let output = '';
    const collect = (chunk: Buffer) => {
      output += chunk;
    };
    child.stdout.on('data', collect);
    child.stderr.on('data', collect);
    child.on('error', reject);
    child.on('close', (code) => {
      if (code === 0) return resolve();
      const first =
        output.split('\n').find((line) => /\berror:|undefined reference/.test(line)) ?? output.split('\n').at(-2) ?? '';
      reject(
        new GraftError('environment', `the native addon does not build: ${first.trim()}`, {
          hint: 'It needs g++ 11 or clang 14 or later, and CMake 3.18 or later',
          data: { output: output.slice(-4000) },
        }),
      );
    });
  });
}
