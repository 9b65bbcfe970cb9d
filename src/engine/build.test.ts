/** The native addon is built once, whoever needs it; the compiler of these tests only says what it did, since a build takes minutes. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import test from 'node:test';
import { temporary } from '../../test/samples/io.ts';
import { LOCK_NAME } from '../base/index.ts';
import { ensureLibTorch } from './libtorch.ts';

const torch = await ensureLibTorch(console.error);

/** A CMake that notes each build, and whose result is an empty file after a second. */
const cmake = `#!/bin/sh
if [ "$1" = --build ]; then echo "$2" >> "$(dirname "$0")/builds"; sleep 1; : > "$2/graft.node"; fi
`;

/** Needs the addon in a process of its own, with this cache. */
function start(cache: string, tools: string) {
  const script = `
    const { ensureAddon } = await import(${JSON.stringify(join(import.meta.dirname, 'build.ts'))});
    console.log(await ensureAddon(${JSON.stringify(torch)}, (line) => console.error(line)));`;
  const env = { ...process.env, GRAFT_CACHE: cache, GRAFT_BUILD_DIR: '', PATH: `${tools}:${process.env.PATH}` };
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], { env });
  let [stdout, stderr] = ['', ''];
  child.stdout.on('data', (chunk) => (stdout += chunk));
  child.stderr.on('data', (chunk) => (stderr += chunk));
  const ended = new Promise<{ code: number | null; addon: string; stderr: string }>((resolve) =>
    child.on('close', (code) => resolve({ code, addon: stdout.trim(), stderr })),
  );
  return { child, ended, isBuilding: () => stderr.includes('Building') };
}

test('of several processes one builds the addon, the others wait and say so; what a killed one left is taken over', async () => {
  using dir = temporary();
  const [cache, tools] = [join(dir.path, 'cache'), join(dir.path, 'tools')];
  mkdirSync(tools);
  writeFileSync(join(tools, 'cmake'), cmake, { mode: 0o755 });
  const builds = () => readFileSync(join(tools, 'builds'), 'utf8').trim().split('\n').length;

  const killed = start(cache, tools);
  let hasEnded = false;
  const ended = killed.ended.finally(() => (hasEnded = true));
  while (!existsSync(join(tools, 'builds')) && !hasEnded) await new Promise((resolve) => setTimeout(resolve, 20));
  killed.child.kill('SIGKILL');
  const { code, stderr } = await ended;
  assert.equal(code, null, stderr);
  const [folder] = readdirSync(join(cache, 'addon'));
  const left = readdirSync(join(cache, 'addon', folder!));
  assert.ok(left.includes(LOCK_NAME) && left.length === 2, left.join());

  const all = await Promise.all([1, 2, 3].map(() => start(cache, tools).ended));
  for (const { code, addon, stderr } of all) {
    assert.equal(code, 0, stderr);
    assert.ok(existsSync(addon), addon);
    assert.deepEqual(readdirSync(dirname(addon)), ['graft.node']);
  }
  assert.equal(builds(), 2, 'that of the killed process, and one more');
  const logs = all.map(({ stderr }) => stderr);
  assert.equal(logs.filter((log) => log.includes('Building the native addon')).length, 1, logs.join());
  assert.equal(
    logs.filter((log) => /Waiting for the native addon, which process \d+, since 2\S+, is building/.test(log)).length,
    2,
    logs.join(),
  );
});
