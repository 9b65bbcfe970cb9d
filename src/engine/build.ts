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
import { cacheDir, GraftError, packageRoot, waitForLock } from '../base/index.ts';
import type { LibTorch } from './libtorch.ts';

const sources = join(packageRoot, 'native');
/** Begins the names of what is being made, beside the addon. */
const draftPrefix = 'building-';
const headerPackages = ['node-api-headers', 'node-addon-api'] as const;

/** Returns every source file of the addon, in a fixed order. */
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

/** Returns the path of the addon in the cache. Its name is a hash of all that is compiled, so a change gives a new path. */
export function addonPath(torch: LibTorch): string {
  const hash = createHash('sha256').update(`${torch.root}\n${torch.version}\n${process.platform} ${process.arch}\n`);
  hash.update(String(statSync(join(torch.root, 'lib', 'libtorch_cpu.so')).size));
  for (const file of sourceFiles()) hash.update(file.slice(sources.length)).update(readFileSync(file));
  return join(cacheDir('addon', hash.digest('hex').slice(0, 16)), 'graft.node');
}

/**
 * Returns the path of the addon, and builds it with CMake unless the cache has it. Of several processes that need it at once, one
 * builds it, and the others wait.
 * @param log receives a line when a build starts (it takes two to five minutes), or is waited for
 * @param rebuild build it even if the cache has it
 * @throws GraftError 'environment' when a compiler or CMake is missing, or with the first error of the compiler
 */
export async function ensureAddon(torch: LibTorch, log: (line: string) => void, rebuild = false): Promise<string> {
  const addon = addonPath(torch);
  if (existsSync(addon) && !rebuild) return addon;
  requireTools();
  const dir = dirname(addon);
  using _lock = await waitForLock(dir, (holder) => log(`Waiting for the native addon, which ${holder}, is building`));
  if (existsSync(addon) && !rebuild) return addon;
  log('Building the native addon (two to five minutes, once)');
  // What a process left that was killed while it was building.
  for (const name of readdirSync(dir)) if (name.startsWith(draftPrefix)) rmSync(join(dir, name), { recursive: true });
  // GRAFT_BUILD_DIR keeps CMake's directory between builds, so that a change in native/ compiles only what it touches.
  const keptDir = process.env.GRAFT_BUILD_DIR || undefined;
  const buildDir = keptDir ?? mkdtempSync(join(dir, draftPrefix));
  try {
    const headers = headerPackages.map(headerDir).join(';');
    await run('cmake', ['-S', sources, '-B', buildDir, `-DLIBTORCH=${torch.root}`, `-DNODE_HEADERS=${headers}`]);
    await run('cmake', ['--build', buildDir, '--parallel', String(availableParallelism())]);
    const draft = join(dir, `${draftPrefix}graft.node`);
    copyFileSync(join(buildDir, 'graft.node'), draft);
    renameSync(draft, addon);
  } finally {
    if (!keptDir) rmSync(buildDir, { recursive: true, force: true });
  }
  return addon;
}

function requireTools(): void {
  const isInstalled = (command: string) => spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0;
  const compiler = process.env.CXX ?? 'c++';
  const missing = [
    ...(isInstalled('cmake') ? [] : ['CMake']),
    ...(isInstalled(compiler) ? [] : [`a C++ compiler (${compiler})`]),
  ];
  if (missing.length > 0) {
    throw new GraftError(
      'environment',
      `the native addon must be built once, and this machine lacks ${missing.join(' and ')}`,
      {
        hint: 'Install them (on Debian or Ubuntu: `apt-get install g++ cmake`) and run the command again',
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
      const firstError =
        output.split('\n').find((line) => /\berror:|undefined reference/.test(line)) ?? output.split('\n').at(-2) ?? '';
      reject(
        new GraftError('environment', `the native addon could not be built: ${firstError.trim()}`, {
          hint: 'Install g++ 11 or clang 14 or later, and CMake 3.18 or later; `--json` shows the output of the build',
          data: { output: output.slice(-4000) },
        }),
      );
    });
  });
}
