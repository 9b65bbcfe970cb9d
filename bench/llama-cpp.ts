/** llama.cpp, through the npm package node-llama-cpp. */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { cacheDir, GraftError } from '../src/base/index.ts';

/** The version whose quantiser the goldens of test/golden/quant are from. */
export const llamaCppVersion = '3.22.1';

/** Installs node-llama-cpp and its binary for this machine into the cache; the folder. */
export function llamaCppFolder(): string {
  const dir = cacheDir('peer', 'llama-cpp');
  if (existsSync(join(dir, 'node_modules', 'node-llama-cpp'))) return dir;
  mkdirSync(dir, { recursive: true });
  writeFileSync(join(dir, 'package.json'), '{ "private": true }');
  const platform = { darwin: process.arch === 'arm64' ? 'mac-arm64-metal' : 'mac-x64', win32: `win-${process.arch}` };
  const binary = `@node-llama-cpp/${(platform as Record<string, string>)[process.platform] ?? `linux-${process.arch}`}`;
  // The other packages of binaries, for graphics cards, are optional and large.
  const packages = [`node-llama-cpp@${llamaCppVersion}`, `${binary}@${llamaCppVersion}`];
  const install = ['install', '--ignore-scripts', '--omit=optional', ...packages];
  const { status } = spawnSync('npm', install, { cwd: dir, stdio: ['ignore', 'inherit', 'inherit'] });
  if (status === 0) return dir;
  throw new GraftError('environment', 'node-llama-cpp could not be installed', { place: dir });
}

/** Runs llama-cpp-streams.mjs with a request. */
export function llamaCppStreams(request: string): {
  readonly ids: number[][];
  readonly tokens_per_s: number;
  readonly decode_tokens_per_s: number;
} {
  const script = join(import.meta.dirname, 'peer', 'llama-cpp-streams.mjs');
  const { status, stdout, stderr } = spawnSync(process.execPath, [script, llamaCppFolder(), request], {
    encoding: 'utf8',
  });
  if (status !== 0) throw new GraftError('environment', `llama.cpp ended with ${status}: ${stderr.slice(-2000)}`);
  return JSON.parse(stdout.trim().split('\n').at(-1)!);
}
